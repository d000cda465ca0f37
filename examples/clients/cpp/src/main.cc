// Submits an experiment file to a Runner, follows it to its end, prints the summary and exports the rows.
#include <getopt.h>
#include <google/protobuf/util/json_util.h>
#include <openssl/evp.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <random>
#include <set>
#include <sstream>

#include "connection.h"
#include "promptlooper/v1/runner_service.grpc.pb.h"

namespace fs = std::filesystem;
namespace pb = promptlooper::v1;

namespace {

constexpr char kUsage[] = R"(usage: promptlooper-client [options] EXPERIMENT_FILE
  -o FILE            where the rows go, a line of JSON each (default: rows.jsonl)
  --request-id ID    goes on with what an earlier call with this ID submitted
  --server ADDRESS   HOST:PORT (default: PROMPTLOOPER_SERVER, else 127.0.0.1:7051)
  --token-file FILE  a bearer token (default: PROMPTLOOPER_SERVER_TOKEN_FILE)
  --ca-file FILE     TLS, with these certificate authorities (default: PROMPTLOOPER_SERVER_CA_FILE)
exit code: 0 all went well, 1 it did not or a gate is missed, 2 usage or the experiment file is wrong)";
constexpr size_t kPiece = 1024 * 1024;

std::string hex(const unsigned char* bytes, size_t size) {
  std::ostringstream text;
  for (size_t i = 0; i < size; i++) text << std::hex << std::setw(2) << std::setfill('0') << int{bytes[i]};
  return text.str();
}

struct Options {
  std::string file, output = "rows.jsonl", request_id, server, token_file, ca_file;
};

class Client {
 public:
  explicit Client(const Options& options)
      : options_(options), runner_(pb::RunnerService::NewStub(open_channel(options.server, options.ca_file))) {}

  // Stores the experiment as its file has it, and sends the files that the server asks for.
  pb::Experiment submit() {
    pb::CreateExperimentRequest request;
    request.set_request_id(options_.request_id);
    pb::ExperimentSource& source = *request.mutable_source();
    source.set_path(fs::path(options_.file).filename());
    source.set_text(text_of(options_.file));
    std::set<std::string> sent;
    for (;;) {
      try {
        return call(&pb::RunnerService::Stub::CreateExperiment, request).experiment();
      } catch (const CallFailed& failure) {
        const size_t before = sent.size();
        for (const auto& path : failure.missing) {
          if (sent.insert(path).second) *source.add_files() = upload(path);
        }
        if (sent.size() == before) throw;
      }
    }
  }

  // Prints every event after the first snapshot, each once and in order, over any number of connections.
  void watch(const std::string& experiment_id) {
    pb::WatchExperimentRequest request;
    request.set_experiment_id(experiment_id);
    int64_t last = 0;
    bool has_ended = false;
    steadily([&](const Advanced& advanced) {
      Call call(options_.token_file);
      auto stream = runner_->WatchExperiment(&call.context, request);
      pb::WatchExperimentResponse message;
      while (stream->Read(&message)) {
        if (message.has_event()) {
          const pb::Event& event = message.event();
          if (message.event_seq() != last + 1) {
            call.context.TryCancel();
            throw std::runtime_error("event " + std::to_string(message.event_seq()) + " came after event " + std::to_string(last));
          }
          std::cout << message.event_seq() << " " << event.kind();
          if (!event.run_id().empty()) std::cout << " " << event.run_id();
          std::cout << std::endl;
        } else if (message.has_snapshot()) {
          std::cout << "following " << experiment_id << " after event " << message.event_seq() << std::endl;
        } else if (message.has_terminal()) {
          has_ended = true;
        }
        request.set_resume_token(message.resume_token());
        last = message.event_seq();
        advanced();
      }
      try {
        check(stream->Finish());
      } catch (const CallFailed& failure) {
        if (failure.reason != "RESUME_TOKEN_EXPIRED") throw;
        std::cerr << "events were missed, the server does not keep them any more; going on from now" << std::endl;
        request.clear_resume_token();
      }
      return has_ended;  // a stream may also end because its server leaves: then again, to another
    });
  }

  // Prints the results; says whether all went well.
  bool summarize(const std::string& experiment_id) {
    pb::SummarizeExperimentRequest request;
    request.set_experiment_id(experiment_id);
    const auto response = call(&pb::RunnerService::Stub::SummarizeExperiment, request);
    const pb::ExperimentSummary& summary = response.summary();
    std::cout << std::fixed << std::setprecision(3);
    for (const auto& each : summary.variants()) {
      std::cout << each.label() << ": " << each.runs() << " runs, " << each.failed() << " failed";
      if (each.has_score()) std::cout << ", score " << each.score();
      if (each.has_pass_rate()) std::cout << ", pass rate " << each.pass_rate();
      if (each.has_latency_ms_p50()) std::cout << ", p50 " << each.latency_ms_p50() << " ms";
      if (each.cost_unknown_calls() == 0) {
        std::cout << ", $" << std::setprecision(6) << static_cast<double>(each.cost_nanousd()) / 1e9 << std::setprecision(3);
      }
      std::cout << "\n";
    }
    bool is_good = summary.experiment().state() == pb::EXPERIMENT_STATE_COMPLETED;
    for (const auto& gate : summary.gates()) {
      std::cout << "gate " << gate.name() << (gate.variant_id().empty() ? "" : " of ") << gate.variant_id() << ": wanted "
                << gate.wanted() << ", got " << (gate.has_got() ? std::to_string(gate.got()) : "-") << ": "
                << (gate.passed() ? "met" : "missed") << "\n";
      is_good = is_good && gate.passed();
    }
    const pb::RunCounts& counts = summary.experiment().counts();
    std::cout << pb::ExperimentState_Name(summary.experiment().state()).substr(sizeof("EXPERIMENT_STATE_") - 1) << ": "
              << counts.completed() << " of " << counts.total() << " runs completed, " << counts.failed() << " failed"
              << std::endl;
    return is_good && counts.failed() == 0;
  }

  // Writes every run, in full, as a line of JSON (the JSON of promptlooper.v1.Run).
  void export_runs(const std::string& experiment_id) {
    std::ofstream file(options_.output, std::ios::binary);
    if (!file) throw std::invalid_argument("can't write " + options_.output);
    pb::ExportRunsRequest request;
    request.set_experiment_id(experiment_id);
    int64_t rows = 0;
    steadily([&](const Advanced& advanced) {
      Call call(options_.token_file);
      call.context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(10));
      auto stream = runner_->ExportRuns(&call.context, request);
      pb::ExportRunsResponse response;
      while (stream->Read(&response)) {
        for (const auto& run : response.runs()) {
          std::string row;
          if (!google::protobuf::util::MessageToJsonString(run, &row).ok()) throw std::runtime_error("a run is no JSON");
          file << row << "\n";
          request.set_start_run_index(run.run_index() + 1);
          rows++;
        }
        advanced();
      }
      check(stream->Finish());
      return true;
    });
    file.close();
    if (!file) throw std::runtime_error("can't write " + options_.output);
    std::cout << rows << " rows in " << options_.output << std::endl;
  }

 private:
  // One answer within 30 s; a server that is away is asked again, so only for calls that may be repeated.
  template <typename Request, typename Response>
  Response call(grpc::Status (pb::RunnerService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    Response response;
    steadily([&](const Advanced&) {
      Call call(options_.token_file);
      call.context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
      check((runner_.get()->*method)(&call.context, request, &response));
      return true;
    });
    return response;
  }

  pb::FileReference upload(const std::string& path) {
    // The server says which files it wants: it gets none from outside the experiment's folder.
    const fs::path inside = fs::path(path).lexically_normal();
    if (inside.is_absolute() || *inside.begin() == "..") throw std::invalid_argument(path + " is outside the experiment's folder");
    const std::string bytes = text_of(fs::path(options_.file).parent_path() / inside);
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr);
    pb::FileReference reference;
    reference.set_path(path);
    reference.set_sha256(hex(digest, size));
    reference.set_size(static_cast<int64_t>(bytes.size()));
    for (size_t offset = 0; offset == 0 || offset < bytes.size(); offset += kPiece) {
      pb::UploadFileRequest request;
      request.set_sha256(reference.sha256());
      request.set_size(reference.size());
      request.set_offset(static_cast<int64_t>(offset));
      request.set_data(bytes.substr(offset, kPiece));
      call(&pb::RunnerService::Stub::UploadFile, request);
    }
    std::cerr << "sent " << path << ", " << bytes.size() << " bytes" << std::endl;
    return reference;
  }

  const Options options_;
  const std::unique_ptr<pb::RunnerService::Stub> runner_;
};

Options options_of(int argc, char** argv) {
  const auto variable = [](const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr && *value != 0 ? value : otherwise);
  };
  Options options;
  options.server = variable("PROMPTLOOPER_SERVER", "127.0.0.1:7051");
  options.token_file = variable("PROMPTLOOPER_SERVER_TOKEN_FILE", "");
  options.ca_file = variable("PROMPTLOOPER_SERVER_CA_FILE", "");
  std::random_device random;
  unsigned char id[16];
  for (auto& byte : id) byte = static_cast<unsigned char>(random());
  options.request_id = hex(id, sizeof id);
  const option known[] = {{"request-id", required_argument, nullptr, 'r'}, {"server", required_argument, nullptr, 's'},
                          {"token-file", required_argument, nullptr, 't'}, {"ca-file", required_argument, nullptr, 'c'},
                          {"help", no_argument, nullptr, 'h'}, {nullptr, 0, nullptr, 0}};
  for (int found; (found = getopt_long(argc, argv, "ho:", known, nullptr)) != -1;) {
    switch (found) {
      case 'h': std::cout << kUsage << std::endl; std::exit(0);
      case 'o': options.output = optarg; break;
      case 'r': options.request_id = optarg; break;
      case 's': options.server = optarg; break;
      case 't': options.token_file = optarg; break;
      case 'c': options.ca_file = optarg; break;
      default: throw std::invalid_argument(kUsage);
    }
  }
  if (optind != argc - 1) throw std::invalid_argument(kUsage);
  options.file = argv[optind];
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  end_calls_on_sigint();
  std::string hint;
  bool is_stored = false;
  const auto fails = [&](const std::string& why, bool may_pass, int code) {
    std::cerr << why << std::endl;
    if (is_stored || may_pass) std::cerr << hint << std::endl;
    return code;
  };
  try {
    const Options options = options_of(argc, argv);
    Client client(options);
    const std::string again = ": the same command with --request-id " + options.request_id + " follows it";
    hint = "the experiment may have been stored and go on" + again;
    const std::string experiment_id = client.submit().experiment_id();
    hint = experiment_id + " is stored and goes on" + again;
    is_stored = true;
    client.watch(experiment_id);
    const bool is_good = client.summarize(experiment_id);
    client.export_runs(experiment_id);
    return is_good ? 0 : 1;
  } catch (const Interrupted&) {
    std::cerr << hint << std::endl;
    return 130;
  } catch (const CallFailed& failure) {
    return fails(failure.described(), failure.may_pass(), failure.reason == "INVALID_EXPERIMENT" ? 2 : 1);
  } catch (const std::invalid_argument& wrong) {
    return fails(wrong.what(), false, 2);
  } catch (const std::exception& error) {
    return fails(error.what(), false, 1);
  }
}
