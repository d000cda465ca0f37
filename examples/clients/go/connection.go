// What every call to a Runner needs, whatever it asks for.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// failure is what a server says of a failed call.
type failure struct {
	reason   string // a name of promptlooper.v1.ErrorReason; empty where no server of ours answered
	problems []string
	missing  []string // paths of the files that the server asks for, with the reason FILES_MISSING
}

func failureOf(err error) (found failure) {
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.reason = detail.Reason
		case *errdetails.BadRequest:
			for _, each := range detail.FieldViolations {
				found.problems = append(found.problems, strings.TrimPrefix(each.Field+": "+each.Description, ": "))
			}
		case *errdetails.PreconditionFailure:
			for _, each := range detail.Violations {
				if each.Type == "FILE" {
					found.missing = append(found.missing, each.Subject)
				}
			}
		}
	}
	return found
}

// describe says what went wrong: the reason and the message, or every problem of an experiment.
func describe(err error) string {
	answer, failed := status.FromError(err)
	if !failed {
		return err.Error()
	}
	found := failureOf(err)
	if found.reason == "" {
		found.reason = answer.Code().String()
	}
	if len(found.problems) > 0 {
		return found.reason + ":\n  " + strings.Join(found.problems, "\n  ")
	}
	return found.reason + ": " + answer.Message()
}

// mayPass says whether the server cannot be reached now, or leaves: the same call, made again, may succeed.
func mayPass(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.Canceled && failureOf(err).reason == ""
}

// steadily makes attempts until one succeeds and says it is done. Between those that got nowhere it waits, longer each time;
// after a minute of them it gives up. An attempt calls advanced when it got somewhere.
func steadily(ctx context.Context, attempt func(advanced func()) (done bool, err error)) error {
	var wait time.Duration
	var since time.Time
	advanced := func() { wait, since = 100*time.Millisecond, time.Now() }
	advanced()
	for {
		done, err := attempt(advanced)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && done {
			return nil
		}
		if err != nil {
			if !mayPass(err) || time.Since(since) > time.Minute {
				return err
			}
			fmt.Fprintf(os.Stderr, "no connection (%s); again in %s\n", status.Convert(err).Message(), wait)
		}
		select {
		case <-time.After(wait/2 + time.Duration(rand.Int63n(int64(wait/2)))):
		case <-ctx.Done():
			return ctx.Err()
		}
		if wait *= 2; wait > 5*time.Second {
			wait = 5 * time.Second
		}
	}
}

// unary asks until there is an answer, each time with a deadline: only for calls that may be repeated.
func unary(ctx context.Context, call func(context.Context) error) error {
	return steadily(ctx, func(func()) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return true, call(ctx)
	})
}

func dial(server, tokenFile, caFile string) (*grpc.ClientConn, error) {
	transport := plaintext()
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		authorities := x509.NewCertPool()
		if !authorities.AppendCertsFromPEM(pem) {
			return nil, errors.New(caFile + " holds no certificate")
		}
		transport = grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: authorities}))
	}
	options := []grpc.DialOption{
		transport,
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// A server that is frozen is noticed; it allows a ping every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
	}
	if tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(tokenFile)))
	}
	return grpc.DialContext(context.Background(), "dns:///"+server, options...)
}

// bearer is the path of a file with a token. It is read for each call, since tokens are replaced.
type bearer string

func (file bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

// RequireTransportSecurity is false, so that a token also goes to a server on this machine without TLS.
func (bearer) RequireTransportSecurity() bool { return false }
