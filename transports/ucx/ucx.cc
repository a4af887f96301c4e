// One worker per transport, one endpoint per peer, which all lanes share. Everything is an active message: puts, and
// four words around them: credit, "this lane is open here", and goodbye.
//
// The end of a peer. Who stops says goodbye after all that it sent, and only then closes; so a receiver knows an end
// in order from a loss, and reports either only after what came before was taken. Before credit is sent, all that has
// come is read: an answer to a peer that has left would make UCX drop what that peer sent before it went.
//
// stop() must leave no memory in use. Endpoints are closed by force, which cancels what is under way, and the worker
// goes: with it every queue pair, mapping and socket through which anybody could still write.
#include "transports/ucx/ucx.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <sstream>

#include "base/log.h"
#include "transports/ucx/address.h"
#include "transports/ucx/context.h"
#include "transports/ucx/link.h"

namespace ringfold::transport::ucx {
namespace {

using std::chrono::steady_clock;

constexpr ucp_am_handler_param_t kNoHandler = {
    .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB,
    .id = 0,
    .flags = 0,
    .cb = nullptr,
    .arg = nullptr};
constexpr int kMostPolls = 64;                             // in one call of progress()
constexpr auto kGoodbye = std::chrono::milliseconds(200);  // the longest that stop() tries to send what it owes
constexpr auto kCancel = std::chrono::seconds(2);          // and waits for UCX to cancel the rest

// Does UCX_TLS, "all" where it is not set, name shared memory? "^a,b" stands for all but a and b.
bool allows_shared_memory() {
  const char* value = std::getenv("UCX_TLS");
  if (value == nullptr) return true;
  std::string_view text(value);
  const bool others = text.starts_with('^');
  if (others) text.remove_prefix(1);
  bool named = false;
  while (!text.empty()) {
    const auto word = text.substr(0, text.find(','));
    for (std::string_view name : {"all", "shm", "sm", "mm", "posix", "sysv", "xpmem"}) named |= word == name;
    text.remove_prefix(std::min(text.size(), word.size() + 1));
  }
  return named != others;
}

class Ucx final : public Transport {
 public:
  Ucx(std::shared_ptr<const Context> context, int rank, int size, uint64_t nonce, uint32_t epoch,
      const Options& options)
      : context_(std::move(context)), rank_(rank), nonce_(nonce) {
    shared_.ucx = &context_->ucx();
    shared_.slot_bytes = options.slot_bytes;
    shared_.slots = options.slots;
    shared_.rank = static_cast<uint16_t>(rank);
    const uint64_t mixed = (nonce ^ epoch * 0x9e3779b97f4a7c15ULL) * 0xff51afd7ed558ccdULL;
    shared_.tag = static_cast<uint32_t>(mixed >> 32);
    peers_.resize(static_cast<size_t>(size));
    for (int p = 0; p < size; ++p) peers_[static_cast<size_t>(p)].rank = p;
  }
  ~Ucx() override { stop(); }

  Status start();

  std::string_view name() const override { return "ucx"; }
  Capabilities capabilities() const override {
    return {.slot_bytes = shared_.slot_bytes, .slots = shared_.slots, .in_memory = !any_tcp_};
  }
  std::string address() const override { return address_.to_string(); }
  Status add_peer(int peer, std::string_view address) override;
  transport::Link* open(int peer, int lane) override;
  bool wanted(int lane) const override { return (wanted_ >> lane & 1) != 0; }
  void progress() override;
  const Failures& failures() const override { return shared_.failures; }
  bool prepare_to_sleep() override;
  void awake() override { seen_ = shared_.moved; }
  int wake_fd() const override { return wake_fd_; }
  void peer_left(int peer) override;
  void stop() override { end(true); }
  void abandon() override { end(false); }
  Counters counters() const override { return shared_.counters; }

 private:
  static ucs_status_t on_message(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                 const ucp_am_recv_param_t* param);
  static void on_error(void* peer, ucp_ep_h, ucs_status_t status);
  ucs_status_t take(const Header& header, void* data, size_t bytes, uint64_t flags);
  Link& link(Peer& peer, int lane);
  void describe_ways(Peer& peer);
  void read_all();
  void look_for_ends();
  void give_credit(bool all);
  // May UCX still have to send its first word to this peer over InfiniBand? It answers peers that we do not know yet,
  // too.
  bool half_made(const Peer& peer) const { return infiniband_ && peer.rank != rank_ && !peer.heard; }
  void leave_worker();
  // `goodbye`: sends what is owed, and says that this is the end.
  void end(bool goodbye);
  template <typename Done>
  void progress_until(const Done& done, steady_clock::duration limit);

  std::shared_ptr<const Context> context_;
  const int rank_;
  const uint64_t nonce_;
  Shared shared_;
  std::vector<Peer> peers_;
  Address address_;
  Standing standing_ = Standing::mine();
  int wake_fd_ = -1;
  bool any_tcp_ = false;
  bool stopped_ = false;
  const bool infiniband_ =
      std::filesystem::exists("/sys/class/infiniband") && !std::filesystem::is_empty("/sys/class/infiniband");
  unsigned wanted_ = 0;  // a bit for each lane that some peer has opened
  uint64_t seen_ = 0;    // Shared::moved when the owner last woke
  uint64_t looked_ = 0;  // and when ends_ was last right
  bool ends_ = false;    // some peer is gone
};

// ---- wiring ----

Status Ucx::start() {
  const Library& ucx = *shared_.ucx;
  const Listening listening;
  Listening::words().clear();
  const auto refused = [&](const char* what, ucs_status_t s) {
    return Status(Code::kUnavailable, fmt::format("ucx: {}: {}", what, words_of(ucx, s)));
  };
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_AM_ALIGNMENT;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.am_alignment = 64;
  if (auto s = ucx.ucp_worker_create(context_->get(), &params, &shared_.worker); s != UCS_OK) {
    shared_.worker = nullptr;
    return refused("no worker can be made", s);
  }
  if (auto s = ucx.ucp_worker_get_efd(shared_.worker, &wake_fd_); s != UCS_OK)
    return refused("what UCX chose cannot wake a sleeper (see UCX_TLS)", s);
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = 0;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = on_message;
  handler.arg = this;
  if (auto s = ucx.ucp_worker_set_am_recv_handler(shared_.worker, &handler); s != UCS_OK)
    return refused("no active messages", s);
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  if (auto s = ucx.ucp_worker_get_address(shared_.worker, &address, &bytes); s != UCS_OK)
    return refused("the worker has no address", s);
  address_ = {.nonce = nonce_,
              .rank = rank_,
              .size = peers_.size(),
              .slots = shared_.slots,
              .slot_bytes = shared_.slot_bytes,
              .version = ucx.ucp_get_version_string(),
              .host = host_id(),
              .standing = standing_.place(),
              .worker = std::string(reinterpret_cast<const char*>(address), bytes)};
  ucx.ucp_worker_release_address(shared_.worker, address);
  return {};
}

Status Ucx::add_peer(int peer, std::string_view address) {
  if (peer < 0 || peer >= static_cast<int>(peers_.size()) || peer == rank_)
    return {Code::kInvalid, fmt::format("ucx: there is no peer {} for rank {} of {}", peer, rank_, peers_.size())};
  Peer& p = peers_[static_cast<size_t>(peer)];
  if (p.endpoint != nullptr) return {Code::kInvalid, fmt::format("ucx: rank {} is a peer already", peer)};
  if (stopped_) return {Code::kAborted, "ucx: the transport was stopped"};
  const auto theirs = Address::parse(address, peer);
  if (!theirs.ok()) return theirs.status();
  RINGFOLD_TRY(address_.check(*theirs, peer));
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_USER_DATA;
  params.address = reinterpret_cast<const ucp_address_t*>(theirs->worker.data());
  // Asked to watch its peers, UCX 1.13 does without shared memory. Between processes of one host that is too dear,
  // and their ends are seen by the control connections, too.
  p.guarded = theirs->host != address_.host || !allows_shared_memory();
  params.err_mode = p.guarded ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  params.err_handler = {on_error, nullptr};
  params.user_data = &p;
  const Listening listening;
  Listening::words().clear();
  if (auto s = shared_.ucx->ucp_ep_create(shared_.worker, &params, &p.endpoint); s != UCS_OK) {
    p.endpoint = nullptr;
    return {Code::kUnavailable, fmt::format("UCX does not reach rank {}: {}", peer, words_of(*shared_.ucx, s))};
  }
  p.shared = &shared_;
  describe_ways(p);
  if (p.is_read) p.standing = Standing::of(theirs->standing);
  shared_.tell(p, Header::kHello, 0, 0);  // UCX connects now anyway; so both sides know when it has
  return {};
}

// UCX tells people only how it reaches a peer: "lane[0]: 5:rc_verbs/rxe0:1.0 md[2] -> ..."
void Ucx::describe_ways(Peer& peer) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* file = ::open_memstream(&text, &size);
  if (file == nullptr) return;
  shared_.ucx->ucp_ep_print_info(peer.endpoint, file);
  std::fclose(file);
  std::istringstream lines{std::string(text, size)};
  std::free(text);
  for (std::string line; std::getline(lines, line);) {
    const auto lane = line.find("lane[");
    const auto colon = line.find(':', lane == std::string::npos ? line.size() : line.find(']', lane) + 2);
    if (lane == std::string::npos || colon == std::string::npos) continue;
    std::string way = line.substr(colon + 1, line.find(' ', colon) - colon - 1);
    way = way.substr(0, way.rfind('.'));
    if (peer.ways.find(way) == std::string::npos) peer.ways += (peer.ways.empty() ? "" : ", ") + way;
    peer.over_tcp |= way.starts_with("tcp/");
    for (const char* reads : {"cma/", "knem/", "xpmem/"}) peer.is_read |= way.starts_with(reads);
  }
  any_tcp_ |= peer.over_tcp;
  log::debug("ucx reaches rank {} by {}", peer.rank, peer.ways.empty() ? "ways that it does not name" : peer.ways);
}

Link& Ucx::link(Peer& peer, int lane) {
  auto& link = peer.links[lane];
  if (!link) link = std::make_unique<Link>(shared_, peer, lane);
  return *link;
}

transport::Link* Ucx::open(int peer, int lane) {
  Peer& p = peers_[static_cast<size_t>(peer)];
  Link& l = link(p, lane);
  if (!l.opened && !stopped_) {
    l.opened = true;
    if (!p.end) shared_.tell(p, Header::kOpened, lane, 0);
  }
  return &l;
}

// ---- messages ----

ucs_status_t Ucx::on_message(void* self, const void* bytes, size_t size, void* data, size_t data_bytes,
                             const ucp_am_recv_param_t* param) {
  auto& me = *static_cast<Ucx*>(self);
  Header header;
  if (size < Header::kPlainBytes || size > sizeof header) return UCS_OK;  // not of ours
  std::memcpy(static_cast<void*>(&header), bytes, Header::kPlainBytes);
  const size_t words = size - Header::kPlainBytes;
  if (words > 0) std::memcpy(header.words, static_cast<const std::byte*>(bytes) + Header::kPlainBytes, words);
  if (size != header.bytes() || header.tag != me.shared_.tag || header.from >= me.peers_.size() ||
      header.from == me.rank_ || header.lane >= kLanes)
    return UCS_OK;  // of another communicator, epoch or nobody
  return me.take(header, data, data_bytes, param->recv_attr);
}

ucs_status_t Ucx::take(const Header& header, void* data, size_t bytes, uint64_t flags) {
  Peer& peer = peers_[header.from];
  if (stopped_ || peer.endpoint == nullptr) return UCS_OK;
  ++shared_.moved;
  peer.heard = true;
  if (header.kind == Header::kHello) return UCS_OK;
  Link& l = link(peer, header.lane);
  switch (header.kind) {
    case Header::kPut: l.take_credit(header.credit); return l.take(header, data, bytes, flags);
    case Header::kCredit: l.take_credit(header.credit); break;
    case Header::kOpened:
      l.peer_opened = true;
      wanted_ |= 1u << header.lane;
      break;
    case Header::kBye:
      peer.said_bye = true;
      shared_.ended(peer, {Code::kPeerLost, fmt::format("rank {} has closed its end", peer.rank)});
      break;
    default: break;
  }
  return UCS_OK;
}

void Ucx::on_error(void* peer, ucp_ep_h, ucs_status_t status) {
  auto& p = *static_cast<Peer*>(peer);
  Shared& shared = *p.shared;
  shared.ended(p, {Code::kPeerLost, fmt::format("the connection to rank {} is lost: UCX says {} (over {})", p.rank,
                                                words_of(*shared.ucx, status), p.ways)});
}

void Ucx::peer_left(int peer) {
  if (stopped_) return;
  read_all();
  Peer& p = peers_[static_cast<size_t>(peer)];
  if (p.said_bye || p.end) return;  // which it says to those that it has heard of
  shared_.ended(p, {Code::kPeerLost, fmt::format("rank {} left the job before the two had met", peer)});
}

// ---- running ----

void Ucx::read_all() {
  const Listening listening;
  for (int i = 0; i < kMostPolls; ++i) {
    ++shared_.counters.polls;
    if (shared_.ucx->ucp_worker_progress(shared_.worker) == 0) break;
  }
}

void Ucx::give_credit(bool all) {
  std::erase_if(shared_.owing, [&](Link* l) {
    l->give_credit(all);
    return !l->owing();
  });
}

void Ucx::look_for_ends() {
  for (Peer& p : peers_) {
    if (!p.end || shared_.failures.of(p.rank) != nullptr) continue;
    const bool holds =
        std::any_of(std::begin(p.links), std::end(p.links), [](auto& l) { return l && l->holds_arrival(); });
    if (holds) continue;
    shared_.moved += shared_.failures.add(p.rank, *p.end);
  }
}

void Ucx::progress() {
  if (stopped_) return;
  read_all();
  if (!shared_.owing.empty()) give_credit(false);
  if (shared_.moved != looked_) {
    looked_ = shared_.moved;
    ends_ = std::any_of(peers_.begin(), peers_.end(), [](auto& p) { return p.end.has_value(); });
  }
  if (ends_) look_for_ends();
}

bool Ucx::prepare_to_sleep() {
  if (stopped_) return false;
  progress();
  give_credit(true);
  const Listening listening;
  for (int i = 0; i < kMostPolls; ++i) {
    if (shared_.moved != seen_) return false;
    const ucs_status_t armed = shared_.ucx->ucp_worker_arm(shared_.worker);
    ++shared_.counters.system_calls;
    if (armed == UCS_OK) return true;
    if (armed != UCS_ERR_BUSY) {
      log::warn("UCX cannot sleep: {}", words_of(*shared_.ucx, armed));
      return false;
    }
    progress();
  }
  return false;
}

// ---- the end ----

template <typename Done>
void Ucx::progress_until(const Done& done, steady_clock::duration limit) {
  const auto end = steady_clock::now() + limit;
  while (!done()) {
    read_all();
    if (steady_clock::now() > end) return;
  }
}

// UCX 1.13 ends the process when a worker goes whose first word to a peer could not be sent yet, as over InfiniBand
// to one that never answered. Nothing was put to such a peer, so the worker holds no memory of the user's; it stays
// until the process ends.
void Ucx::leave_worker() {
  static std::mutex mutex;
  static auto* workers = new std::vector<std::pair<std::shared_ptr<const Context>, ucp_worker_h>>;
  std::lock_guard lock(mutex);
  workers->emplace_back(context_, shared_.worker);
  shared_.ucx->ucp_worker_set_am_recv_handler(shared_.worker, &kNoHandler);
  log::info("ucx: a worker that never reached all of its peers is left to the end of the process");
}

void Ucx::end(bool goodbye) {
  if (stopped_) return;
  stopped_ = true;
  if (shared_.worker == nullptr) return;
  // A rank that leaves in order has nothing under way, and the last to read from it may only be about to look.
  const auto unsent = [](Peer& p) {
    return std::any_of(std::begin(p.links), std::end(p.links), [](auto& l) { return l && l->unsent(); });
  };
  if (std::any_of(peers_.begin(), peers_.end(), unsent)) standing_.end();
  const Library& ucx = *shared_.ucx;
  const Listening listening;
  std::vector<ucs_status_ptr_t> requests;
  ucp_request_param_t plain{};
  const auto settle = [&](steady_clock::duration limit) {
    progress_until(
        [&] {
          return std::all_of(requests.begin(), requests.end(),
                             [&](auto r) { return ucx.ucp_request_check_status(r) != UCS_INPROGRESS; });
        },
        limit);
  };
  // Everything that was retired is on its way, and behind it goes the goodbye.
  const auto say_goodbye = [&] {
    for (Peer& p : peers_) {
      if (p.endpoint == nullptr || p.end || !p.heard || std::exchange(p.told_bye, true)) continue;
      shared_.tell(p, Header::kBye, 0, 0);
      if (auto request = ucx.ucp_ep_flush_nbx(p.endpoint, &plain); UCS_PTR_IS_PTR(request))
        requests.push_back(request);
    }
    settle(kGoodbye);
  };
  const auto unheard = [&] {
    return std::any_of(peers_.begin(), peers_.end(), [&](auto& p) { return half_made(p); });
  };
  if (goodbye) say_goodbye();
  if (goodbye && unheard()) {
    progress_until([&] { return !unheard(); }, kGoodbye);
    say_goodbye();  // to those heard of since
  }
  for (Peer& p : peers_) {
    for (auto& l : p.links) {
      if (l) l->stop();
    }
  }
  ucp_request_param_t force{};
  force.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  force.flags = UCP_EP_CLOSE_FLAG_FORCE;
  for (Peer& p : peers_) {
    if (p.endpoint == nullptr) continue;
    // Others go with the worker: UCX 1.13 forbids force where it does not watch, and ends the process when it is used
    // on a connection that is still being made.
    if (!p.guarded || !p.heard) continue;
    if (auto request = ucx.ucp_ep_close_nbx(p.endpoint, &force); UCS_PTR_IS_PTR(request)) requests.push_back(request);
    p.endpoint = nullptr;
  }
  settle(kCancel);
  // What cannot be cancelled ends by itself: UCX 1.13 ends the process when a worker goes that is in the middle of
  // reading another process's memory.
  progress_until([&] { return shared_.fetches == 0; }, kGoodbye);
  for (auto request : requests) ucx.ucp_request_free(request);
  if (std::all_of(peers_.begin(), peers_.end(), [](auto& p) { return p.guarded && p.heard; }))
    progress_until([&] { return shared_.outstanding == 0; }, kCancel);
  if (unheard()) {
    leave_worker();
  } else {
    ucx.ucp_worker_destroy(shared_.worker);
  }
  shared_.worker = nullptr;
  wake_fd_ = -1;
}

}  // namespace

Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, uint32_t epoch,
                                        const Options& options) {
  const auto invalid = [](std::string why) { return Status(Code::kInvalid, "ucx: " + std::move(why)); };
  if (size < 1 || size > 65535 || rank < 0 || rank >= size)
    return invalid(fmt::format("there is no rank {} of {}", rank, size));
  if (options.slot_bytes < 64 || options.slot_bytes > 16 << 20)
    return invalid(fmt::format("slots of {} bytes; 64 bytes to 16 MiB are possible", options.slot_bytes));
  if (options.slots < 1 || options.slots > 1024)
    return invalid(fmt::format("{} slots; 1 to 1024 are possible", options.slots));
  auto context = Context::shared();
  if (!context.ok()) return context.status();
  auto ucx = std::make_unique<Ucx>(*std::move(context), rank, size, communicator_nonce, epoch, options);
  RINGFOLD_TRY(ucx->start());
  return std::unique_ptr<Transport>(std::move(ucx));
}

}  // namespace ringfold::transport::ucx
