#include "comm/session.h"

#include <fmt/format.h>

#include "base/log.h"

namespace ringfold::comm {

Status Session::configure(const Options& options) {
  auto read = Config::from_environment(process_environment());
  if (!read.ok()) return read.status();
  config = *std::move(read);
  if (options.timeout_s != 0) config.timeout = options.timeout_s;
  if (!options.transport.empty()) config.transport = options.transport;
  if (!options.algorithm.empty()) config.algorithm = options.algorithm;
  if (!options.codec.empty()) config.codec = options.codec;
  if (!options.key_file.empty()) config.key_file = options.key_file;
  if (options.deterministic) config.deterministic = true;
  RINGFOLD_TRY(config.check());
  timeout = base::duration_of(config.timeout);
  return {};
}

void Session::start_engine(bool background) {
  std::vector<base::Processors> neighbours;
  size_t me = 0;
  for (int r = 0; r < control->size(); ++r) {
    if (control->peer(r).host_id != control->peer(control->rank()).host_id) continue;
    if (r == control->rank()) me = neighbours.size();
    neighbours.push_back(control->peer(r).processors);
  }
  exec::Engine::Options options;
  options.wait = exec::WaitPolicy::for_host(base::one_for_each(neighbours, me));
  options.background = config.progress.value() == "on" || (config.progress.value() == "auto" && background);
  engine = std::make_shared<exec::Engine>(options);
}

Result<std::shared_ptr<Session>> Session::join(const Options& options) {
  auto session = std::make_shared<Session>();
  RINGFOLD_TRY(session->configure(options));
  Launch& launch = session->launch;
  if (options.rank >= 0 || options.size >= 0) {
    if (options.rank < 0 || options.size < 1 || options.rank >= options.size) {
      return Status(Code::kInvalid, fmt::format("Options: rank {} of {}: give both, with 0 <= rank < size",
                                                options.rank, options.size));
    }
    launch = {.rank = options.rank,
              .size = options.size,
              .rendezvous = options.rendezvous,
              .exchange = options.exchange,
              .source = "the caller"};
    if (launch.size > 1 && launch.rendezvous.empty() == (launch.exchange == nullptr)) {
      return Status(Code::kInvalid,
                    launch.rendezvous.empty()
                        ? "Options::rendezvous is empty: give \"host:port\" or \"dir:/path\", the same on all ranks"
                        : "Options: give a rendezvous or an exchange, not both");
    }
  } else {
    auto read = read_launch(process_environment(), session->config);
    if (!read.ok()) return read.status();
    launch = *std::move(read);
    if (!options.rendezvous.empty()) launch.rendezvous = options.rendezvous, launch.exchange = nullptr;
  }
  launch.open = options.open;
  launch.comes_back = options.open && lookup(process_environment(), "RINGFOLD_RESTARTED") == "1";
  log::set_prefix(launch.size > 1 ? fmt::format("rank {}", launch.rank) : std::string());
  if (launch.size == 1) {
    session->hub = std::make_shared<LocalHub>(1);
    session->control = session->hub->control(0);
  } else {
    auto key = options.key.empty() ? load_key(session->config, process_environment()) : base::Key::parse(options.key);
    if (!key.ok()) return key.status();
    auto control = Control::connect(launch, session->config, *key, base::Deadline::after(session->timeout));
    if (!control.ok()) return control.status();
    session->key = *std::move(key);
    session->control = *std::move(control);
  }
  session->start_engine(options.background);
  return session;
}

Result<std::vector<std::shared_ptr<Session>>> Session::local(int ranks, const Options& options) {
  if (ranks < 1) return Status(Code::kInvalid, fmt::format("init_local: {} ranks: at least one is needed", ranks));
  auto hub = std::make_shared<LocalHub>(ranks);
  auto key = base::Key::generate();
  if (!key.ok()) return key.status();
  std::vector<std::shared_ptr<Session>> sessions;
  for (int r = 0; r < ranks; ++r) {
    auto session = std::make_shared<Session>();
    RINGFOLD_TRY(session->configure(options));
    session->in_process = true;
    session->launch = {.rank = r, .size = ranks, .source = "init_local"};
    session->hub = hub;
    session->key = *key;
    session->control = hub->control(r);
    session->start_engine(options.background);
    sessions.push_back(std::move(session));
  }
  return sessions;
}

}  // namespace ringfold::comm
