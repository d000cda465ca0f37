#include "connection.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <fstream>
#include <iostream>
#include <mutex>
#include <random>
#include <thread>

namespace {

std::mutex mutex;
std::condition_variable news;
bool interrupted = false;
grpc::ClientContext* under_way = nullptr;

// Seconds, and not shorter than half of them: clients that lost one server do not all come back at once.
std::chrono::duration<double> some_of(double seconds) {
  static std::mt19937 random{std::random_device{}()};
  return std::chrono::duration<double>(seconds * std::uniform_real_distribution<>(0.5, 1)(random));
}

}  // namespace

CallFailed::CallFailed(const grpc::Status& status) : runtime_error(status.error_message()), code(status.error_code()) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest request;
  google::rpc::PreconditionFailure failure;
  for (const auto& detail : details.details()) {
    if (detail.UnpackTo(&info)) {
      reason = info.reason();
    } else if (detail.UnpackTo(&request)) {
      for (const auto& each : request.field_violations()) {
        problems.push_back(each.field().empty() ? each.description() : each.field() + ": " + each.description());
      }
    } else if (detail.UnpackTo(&failure)) {
      for (const auto& each : failure.violations()) {
        if (each.type() == "FILE") missing.push_back(each.subject());
      }
    }
  }
}

bool CallFailed::may_pass() const {
  return code == grpc::StatusCode::UNAVAILABLE || (code == grpc::StatusCode::CANCELLED && reason.empty());
}

std::string CallFailed::described() const {
  std::string text = (reason.empty() ? "status " + std::to_string(code) : reason) + ":";
  if (problems.empty()) return text + " " + what();
  for (const auto& problem : problems) text += "\n  " + problem;
  return text;
}

void end_calls_on_sigint() {
  sigset_t sigint;
  sigemptyset(&sigint);
  sigaddset(&sigint, SIGINT);
  pthread_sigmask(SIG_BLOCK, &sigint, nullptr);  // threads that come later inherit this
  std::thread([sigint] {
    int received;
    sigwait(&sigint, &received);
    std::lock_guard lock(mutex);
    interrupted = true;
    if (under_way != nullptr) under_way->TryCancel();
    news.notify_all();
  }).detach();
}

Call::Call(const std::string& token_file) {
  if (!token_file.empty()) {
    std::string token = text_of(token_file);
    token.erase(token.find_last_not_of(" \r\n") + 1);
    context.AddMetadata("authorization", "Bearer " + token);
  }
  std::lock_guard lock(mutex);
  if (interrupted) throw Interrupted();
  under_way = &context;
}

Call::~Call() {
  std::lock_guard lock(mutex);
  under_way = nullptr;
}

std::shared_ptr<grpc::Channel> open_channel(const std::string& server, const std::string& ca_file) {
  grpc::ChannelArguments arguments;
  arguments.SetLoadBalancingPolicyName("round_robin");
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);  // a server that is frozen is noticed; it allows a ping every 10 s
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  auto credentials = grpc::InsecureChannelCredentials();
  if (!ca_file.empty()) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = text_of(ca_file);
    if (options.pem_root_certs.find("-----BEGIN CERTIFICATE-----") == std::string::npos) {
      throw std::invalid_argument(ca_file + " holds no certificate");
    }
    credentials = grpc::SslCredentials(options);
  }
  return grpc::CreateCustomChannel("dns:///" + server, credentials, arguments);
}

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text, part(65536, '\0');
  while (file.read(part.data(), part.size()) || file.gcount() > 0) text.append(part, 0, file.gcount());
  if (!file.eof()) throw std::invalid_argument("can't read " + path);
  return text;
}

void steadily(const std::function<bool(const Advanced&)>& attempt) {
  using Clock = std::chrono::steady_clock;
  double wait;  // seconds
  Clock::time_point since;
  const Advanced advanced = [&] { wait = 0.1, since = Clock::now(); };
  advanced();
  for (;;) {
    try {
      if (attempt(advanced)) return;
    } catch (const CallFailed& failure) {
      if (!failure.may_pass() || Clock::now() - since > std::chrono::minutes(1)) throw;
      std::cerr << "no connection (" << failure.what() << "); again in " << wait << " s" << std::endl;
    }
    std::unique_lock lock(mutex);
    if (news.wait_for(lock, some_of(wait), [] { return interrupted; })) throw Interrupted();
    wait = std::min(wait * 2, 5.0);
  }
}

void check(const grpc::Status& status) {
  if (status.ok()) return;
  std::lock_guard lock(mutex);
  if (interrupted) throw Interrupted();
  throw CallFailed(status);
}
