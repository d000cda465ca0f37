// What every call to a Runner needs, whatever it asks for.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// A call failed. `reason` is a name of promptlooper.v1.ErrorReason, empty where no server of ours answered.
class CallFailed : public std::runtime_error {
 public:
  explicit CallFailed(const grpc::Status& status);
  // The server cannot be reached now, or leaves: the same call, made again, may succeed.
  bool may_pass() const;
  // The reason and the message, or every problem of an experiment.
  std::string described() const;

  grpc::StatusCode code;
  std::string reason;
  std::vector<std::string> problems;
  // Paths of the files that the server asks for, with the reason FILES_MISSING.
  std::vector<std::string> missing;
};

// The user wants no more of it.
class Interrupted : public std::exception {};

// Makes SIGINT end the call that is under way, if there is one, and waits; from then on they throw Interrupted. Before any
// thread is started.
void end_calls_on_sigint();

// The context of one call, with the token of a file (read for each call, since tokens are replaced).
class Call {
 public:
  explicit Call(const std::string& token_file);
  ~Call();
  grpc::ClientContext context;
};

std::shared_ptr<grpc::Channel> open_channel(const std::string& server, const std::string& ca_file);

std::string text_of(const std::string& path);

// Makes attempts until one says it is done. Between those that got nowhere it waits, longer each time; after a minute of
// them it gives up. An attempt calls its argument when it got somewhere.
using Advanced = std::function<void()>;
void steadily(const std::function<bool(const Advanced&)>& attempt);

// Throws CallFailed, or Interrupted, unless the status is OK.
void check(const grpc::Status& status);
