// Submits an experiment file to a Runner, follows it to its end, prints the summary and exports the rows.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	pb "promptlooper-client/gen/promptlooper/v1"
)

const piece = 1024 * 1024

// submit stores the experiment as its file has it, and sends the files that the server asks for.
func submit(ctx context.Context, runner pb.RunnerServiceClient, file, requestID string) (*pb.Experiment, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	source := &pb.ExperimentSource{Path: filepath.Base(file), Text: string(text)}
	sent := map[string]bool{}
	for {
		var stored *pb.CreateExperimentResponse
		err := unary(ctx, func(ctx context.Context) (err error) {
			stored, err = runner.CreateExperiment(ctx, &pb.CreateExperimentRequest{Source: source, RequestId: requestID})
			return err
		})
		if err == nil {
			return stored.Experiment, nil
		}
		before := len(sent)
		for _, path := range failureOf(err).missing {
			if sent[path] {
				continue
			}
			reference, err := upload(ctx, runner, filepath.Dir(file), path)
			if err != nil {
				return nil, err
			}
			source.Files, sent[path] = append(source.Files, reference), true
		}
		if len(sent) == before {
			return nil, err
		}
	}
}

func upload(ctx context.Context, runner pb.RunnerServiceClient, folder, path string) (*pb.FileReference, error) {
	// The server says which files it wants: it gets none from outside the experiment's folder.
	inside, err := filepath.Rel(folder, filepath.Join(folder, path))
	if err != nil || filepath.IsAbs(path) || strings.HasPrefix(inside, "..") {
		return nil, fmt.Errorf("%s: %w", path, errOutside)
	}
	bytes, err := os.ReadFile(filepath.Join(folder, path))
	if err != nil {
		return nil, err
	}
	reference := &pb.FileReference{Path: path, Sha256: fmt.Sprintf("%x", sha256.Sum256(bytes)), Size: int64(len(bytes))}
	for offset := 0; offset == 0 || offset < len(bytes); offset += piece {
		end := offset + piece
		if end > len(bytes) {
			end = len(bytes)
		}
		request := &pb.UploadFileRequest{
			Sha256: reference.Sha256, Size: reference.Size, Offset: int64(offset), Data: bytes[offset:end],
		}
		err := unary(ctx, func(ctx context.Context) error {
			_, err := runner.UploadFile(ctx, request)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(os.Stderr, "sent %s, %d bytes\n", path, len(bytes))
	return reference, nil
}

// watch prints every event after the first snapshot, each once and in order, over any number of connections.
func watch(ctx context.Context, runner pb.RunnerServiceClient, experimentID string) (terminal *pb.Experiment, err error) {
	var token string
	var last int64
	err = steadily(ctx, func(advanced func()) (bool, error) {
		stream, err := runner.WatchExperiment(ctx, &pb.WatchExperimentRequest{ExperimentId: experimentID, ResumeToken: token})
		if err != nil {
			return false, err
		}
		for {
			message, err := stream.Recv()
			switch {
			case err == io.EOF: // without a terminal message its server leaves: then again, to another
				return terminal != nil, nil
			case err != nil && failureOf(err).reason == "RESUME_TOKEN_EXPIRED":
				fmt.Fprintln(os.Stderr, "events were missed, the server does not keep them any more; going on from now")
				token = ""
				return false, nil
			case err != nil:
				return false, err
			}
			switch kind := message.Message.(type) {
			case *pb.WatchExperimentResponse_Snapshot:
				fmt.Printf("following %s after event %d\n", experimentID, message.EventSeq)
			case *pb.WatchExperimentResponse_Event:
				if message.EventSeq != last+1 {
					return false, fmt.Errorf("event %d came after event %d", message.EventSeq, last)
				}
				fmt.Println(strings.TrimRight(fmt.Sprint(message.EventSeq, " ", kind.Event.Kind, " ", kind.Event.RunId), " "))
			case *pb.WatchExperimentResponse_Terminal:
				terminal = kind.Terminal
			}
			token, last = message.ResumeToken, message.EventSeq
			advanced()
		}
	})
	return terminal, err
}

// exportRuns writes every run, in full, as a line of JSON (the JSON of promptlooper.v1.Run).
func exportRuns(ctx context.Context, runner pb.RunnerServiceClient, experimentID, output string) (rows int, err error) {
	file, err := os.Create(output)
	if err != nil {
		return 0, err
	}
	defer func() {
		if failed := file.Close(); err == nil {
			err = failed
		}
	}()
	lines := bufio.NewWriter(file)
	var start int64
	err = steadily(ctx, func(advanced func()) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		stream, err := runner.ExportRuns(ctx, &pb.ExportRunsRequest{ExperimentId: experimentID, StartRunIndex: start})
		if err != nil {
			return false, err
		}
		for {
			response, err := stream.Recv()
			if err == io.EOF {
				return true, lines.Flush()
			}
			if err != nil {
				return false, err
			}
			for _, run := range response.Runs {
				row, err := protojson.Marshal(run)
				if err != nil {
					return false, err
				}
				fmt.Fprintf(lines, "%s\n", row)
				start, rows = run.RunIndex+1, rows+1
			}
			advanced()
		}
	})
	return rows, err
}

func printSummary(summary *pb.ExperimentSummary) (met bool) {
	number := func(value *float64) string {
		if value == nil {
			return "-"
		}
		return fmt.Sprintf("%.3f", *value)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "variant\truns\tfailed\tscore\tpass rate\tp50 ms\tcost")
	for _, each := range summary.Variants {
		p50, cost := "-", "unknown"
		if each.LatencyMsP50 != nil {
			p50 = fmt.Sprint(*each.LatencyMsP50)
		}
		if each.CostUnknownCalls == 0 {
			cost = fmt.Sprintf("$%.6f", float64(each.CostNanousd)/1e9)
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n",
			each.Label, each.Runs, each.Failed, number(each.Score), number(each.PassRate), p50, cost)
	}
	table.Flush()
	met = true
	for _, gate := range summary.Gates {
		name, verdict := gate.Name, "met"
		if gate.VariantId != "" {
			name += " of " + gate.VariantId
		}
		if !gate.Passed {
			met, verdict = false, "missed"
		}
		fmt.Printf("gate %s: wanted %g, got %s: %s\n", name, gate.Wanted, number(gate.Got), verdict)
	}
	counts := summary.Experiment.Counts
	state := strings.TrimPrefix(summary.Experiment.State.String(), "EXPERIMENT_STATE_")
	fmt.Printf("%s: %d of %d runs completed, %d failed\n", state, counts.Completed, counts.Total, counts.Failed)
	return met && summary.Experiment.State == pb.ExperimentState_EXPERIMENT_STATE_COMPLETED && counts.Failed == 0
}

var errOutside = errors.New("outside the experiment's folder")

// run does it all. stored is the id of the experiment, as soon as it is known.
func run(ctx context.Context, runner pb.RunnerServiceClient, file, output, requestID string) (stored string, good bool, err error) {
	experiment, err := submit(ctx, runner, file, requestID)
	if err != nil {
		return "", false, err
	}
	id := experiment.ExperimentId
	if _, err := watch(ctx, runner, id); err != nil {
		return id, false, err
	}
	var results *pb.SummarizeExperimentResponse
	err = unary(ctx, func(ctx context.Context) (err error) {
		results, err = runner.SummarizeExperiment(ctx, &pb.SummarizeExperimentRequest{ExperimentId: id})
		return err
	})
	if err != nil {
		return id, false, err
	}
	good = printSummary(results.Summary)
	rows, err := exportRuns(ctx, runner, id, output)
	if err == nil {
		fmt.Printf("%d rows in %s\n", rows, output)
	}
	return id, good, err
}

func newID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err) // the system has no random numbers
	}
	return fmt.Sprintf("%x", id)
}

func main() {
	fallback := func(variable, otherwise string) string {
		if value := os.Getenv(variable); value != "" {
			return value
		}
		return otherwise
	}
	output := flag.String("o", "rows.jsonl", "the `FILE` for the rows, a line of JSON each")
	requestID := flag.String("request-id", "", "goes on with what an earlier call with this `ID` submitted")
	server := flag.String("server", fallback("PROMPTLOOPER_SERVER", "127.0.0.1:7051"), "`HOST:PORT`; or PROMPTLOOPER_SERVER")
	tokenFile := flag.String("token-file", os.Getenv("PROMPTLOOPER_SERVER_TOKEN_FILE"), "a `FILE` with a bearer token")
	caFile := flag.String("ca-file", os.Getenv("PROMPTLOOPER_SERVER_CA_FILE"), "TLS, with the certificate authorities in `FILE`")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: promptlooper-client [options] EXPERIMENT_FILE")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if *requestID == "" {
		*requestID = newID()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	channel, err := dial(*server, *tokenFile, *caFile)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	stored, good, err := run(ctx, pb.NewRunnerServiceClient(channel), flag.Arg(0), *output, *requestID)
	hint := stored + " is stored and goes on"
	if stored == "" {
		hint = "the experiment may have been stored and go on"
	}
	hint += ": the same command with --request-id " + *requestID + " follows it"
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, hint)
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, describe(err))
		if stored != "" || mayPass(err) {
			fmt.Fprintln(os.Stderr, hint)
		}
		var badFile *os.PathError
		if errors.As(err, &badFile) || errors.Is(err, errOutside) || failureOf(err).reason == "INVALID_EXPERIMENT" {
			os.Exit(2)
		}
		os.Exit(1)
	case !good:
		os.Exit(1)
	}
}
