#include "transports/shm/shm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/log.h"
#include "base/region.h"
#include "transports/shm/reads.h"
#include "transports/shm/segment.h"

namespace ringfold::shm {
namespace {

Status system_error(const char* what) {
  return {Code::kUnavailable, fmt::format("shared memory: {}: {}", what, std::strerror(errno))};
}

// A peer's region, mapped here until the peer frees it.
struct Import {
  uint64_t id = 0;
  uint32_t entry = 0;
  Mapping memory;
};

struct ShmPeer {
  Address address;
  Mapping header, block;  // of its segment: the header, and the rings that lead from this rank to it
  Mapping directory;      // of its regions
  Fd pipe;                // wakes it
  Fd process;             // readable when it has ended
  uint32_t reads = 0;     // Reads of this rank's memory by the peer; 0: not known yet
  std::vector<Import> imports;
  size_t last_import = 0;
  uint64_t freed = 0;  // of its directory, when imports were swept

  SegmentHeader* segment() const { return reinterpret_cast<SegmentHeader*>(header.data()); }
  const region::Directory* regions() const { return reinterpret_cast<const region::Directory*>(directory.data()); }
};

// The word of `segment` in which its owner says how it can read the memory of `sender`.
std::atomic_ref<uint32_t> reads_word(SegmentHeader* segment, int sender) {
  return std::atomic_ref<uint32_t>(reinterpret_cast<uint32_t*>(segment + 1)[sender]);
}

// Loads a word of a mapping that is read-only here.
template <typename T>
T load(const T& word) {
  return std::atomic_ref<T>(const_cast<T&>(word)).load(std::memory_order_acquire);
}

class ShmTransport final : public RingTransport {
 public:
  ShmTransport(int rank, int size, const Options& options)
      : RingTransport(rank, size,
                      {static_cast<uint32_t>(options.slots), static_cast<uint32_t>(options.slot_bytes),
                       static_cast<uint32_t>(std::max(options.slots, options.lines))},
                      std::min(options.region_bytes, options.remote_bytes)),
        options_(options),
        layout_{size, geometry_},
        peers_(static_cast<size_t>(size)) {}
  ~ShmTransport() override {
    if (bell_ != nullptr) stop();
  }

  Status create(uint64_t communicator);

  std::string_view name() const override { return "shm"; }
  std::string address() const override { return address_.to_string(); }
  Status add_peer(int peer, std::string_view text) override;
  int wake_fd() const override { return epoll_.get(); }

 private:
  SegmentHeader* segment() const { return reinterpret_cast<SegmentHeader*>(own_.data()); }
  ShmPeer& at(int peer) { return peers_[static_cast<size_t>(peer)]; }

  Status connect(int rank, ShmPeer& peer) const;
  uint32_t probe_reads(ShmPeer& peer);
  void sweep_imports(ShmPeer& peer);
  const Import* find_import(ShmPeer& peer, const Reference& reference);

  Rings rings(int peer, int lane) override;
  void ring(int peer) override;
  void poll_system() override;
  SlotKind refer(int peer, const std::byte* data, size_t bytes, Reference* reference) override;
  bool is_readable(const std::byte* data, size_t bytes);
  const std::byte* resolve(int peer, SlotLine& line, bool* gone) override;
  Status fetch(int peer, const SlotLine& line, std::byte* destination) override;
  bool refused(int peer, const std::byte* data, size_t bytes) override;

  const Options options_;
  const SegmentLayout layout_;
  Address address_;
  uint64_t nonce_ = 0;  // peers try to read it here, in ordinary memory
  Fd segment_fd_, pipe_read_, pipe_write_, epoll_;
  Mapping own_;
  region::Finder finder_;
  std::vector<ShmPeer> peers_;
  bool wary_ = false;  // some memory of this process could not be read
};

Status ShmTransport::create(uint64_t communicator) {
  auto here = Address::here();
  if (!here.ok()) return here.status();
  address_ = std::move(*here);
  auto directory = region::directory();
  if (!directory.ok()) return directory.status();

  segment_fd_ = Fd(memfd_create("ringfold-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!segment_fd_.ok()) return system_error("memfd_create");
  if (ftruncate(segment_fd_.get(), static_cast<off_t>(layout_.bytes())) != 0) return system_error("segment size");
  // A peer that could shrink the file would make every access here a SIGBUS.
  if (fcntl(segment_fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return system_error("sealing the segment");
  }
  own_ = Mapping::of(segment_fd_.get(), 0, layout_.bytes(), true);
  if (!own_.ok()) return system_error("mapping the segment");

  // A pipe and not an eventfd: peers can open a pipe through /proc.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return system_error("pipe");
  pipe_read_ = Fd(ends[0]);
  pipe_write_ = Fd(ends[1]);
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.ok()) return system_error("epoll");
  epoll_event event{.events = EPOLLIN, .data = {.u32 = static_cast<uint32_t>(rank_)}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, pipe_read_.get(), &event) != 0) return system_error("epoll");

  if (getrandom(&nonce_, sizeof nonce_, 0) != sizeof nonce_) return system_error("random numbers");
  address_.segment_fd = segment_fd_.get();
  address_.pipe_fd = pipe_write_.get();
  address_.directory_fd = *directory;
  address_.nonce = nonce_;
  SegmentHeader& header = *segment();
  header.magic = kSegmentMagic;
  header.version = kLayoutVersion;
  header.rank = rank_;
  header.size = size_;
  header.geometry = geometry_;
  header.nonce = nonce_;
  header.communicator = communicator;
  header.probe = reinterpret_cast<uint64_t>(&nonce_);
  header.sample = reinterpret_cast<uint64_t>(sample());
  own_bell(&header.bell);
  if (options_.permit_reads) prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // fails where no Yama asks for it
  return {};
}

Status ShmTransport::add_peer(int rank, std::string_view text) {
  if (rank < 0 || rank >= size_ || rank == rank_ || is_wired(rank)) {
    return {Code::kInvalid, fmt::format("{} is not a peer to add", rank)};
  }
  auto address = Address::parse(text);
  if (!address.ok()) return address.status();
  ShmPeer peer;
  peer.address = std::move(*address);
  RINGFOLD_TRY(connect(rank, peer));
  if (peer.process.ok()) {
    epoll_event event{.events = EPOLLIN, .data = {.u32 = static_cast<uint32_t>(rank)}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, peer.process.get(), &event) != 0) return system_error("epoll");
  }
  const uint32_t reads = probe_reads(peer);
  at(rank) = std::move(peer);
  peer_added(rank, &at(rank).segment()->bell);
  reads_word(segment(), rank).store(reads, std::memory_order_release);
  return {};
}

Status ShmTransport::connect(int rank, ShmPeer& peer) const {
  const Address& a = peer.address;
  if (a.host != address_.host) return {Code::kUnavailable, "the peer is on another host"};
  if (a.pid_space != address_.pid_space) {
    return {Code::kUnavailable,
            "the peer is in another container of this host: shared memory needs one PID namespace "
            "(docker run --pid=host, or --pid=container:NAME)"};
  }
  // Before anything is opened: if the number is given to a new process later, the nonce below does not fit.
  peer.process = Fd(static_cast<int>(syscall(SYS_pidfd_open, a.pid, 0)));
  if (!peer.process.ok() && errno == ESRCH) return {Code::kPeerLost, fmt::format("process {} has ended", a.pid)};
  if (!peer.process.ok()) log::info("shm: no pidfd ({}): ended peers are found by deadlines", std::strerror(errno));

  auto file = a.open(a.segment_fd, O_RDWR);
  if (!file.ok()) return file.status();
  const off_t length = lseek(file->get(), 0, SEEK_END);
  if (length < static_cast<off_t>(layout_.header_bytes())) {
    return {Code::kProtocol, fmt::format("descriptor {} of process {} is no segment", a.segment_fd, a.pid)};
  }
  peer.header = Mapping::of(file->get(), 0, layout_.header_bytes(), true);
  if (!peer.header.ok()) return system_error("mapping the peer's segment");
  const SegmentHeader& h = *peer.segment();
  if (h.magic != kSegmentMagic || h.version != kLayoutVersion || h.nonce != a.nonce) {
    return {Code::kProtocol,
            fmt::format("descriptor {} of process {} is not the segment that was announced", a.segment_fd, a.pid)};
  }
  if (h.communicator != segment()->communicator) {
    return {Code::kMismatch, fmt::format("process {} announced a segment of another communicator", a.pid)};
  }
  if (h.rank != rank || h.size != size_) {
    return {Code::kMismatch,
            fmt::format("process {} is rank {} of {}, expected rank {} of {}", a.pid, h.rank, h.size, rank, size_)};
  }
  if (h.geometry != geometry_) {
    return {Code::kMismatch,
            fmt::format("process {} has {} slots of {} bytes, this rank {} of {}: ranks need the same "
                        "options",
                        a.pid, h.geometry.slots, h.geometry.slot_bytes, geometry_.slots, geometry_.slot_bytes)};
  }
  if (length != static_cast<off_t>(layout_.bytes()))
    return {Code::kProtocol, "the peer's segment has a wrong length"};
  peer.block = Mapping::of(file->get(), layout_.block_offset(rank_), layout_.block_bytes(), true);
  if (!peer.block.ok()) return system_error("mapping the peer's rings");

  // Read and write, though only written: so this process is a reader, too, and a write after the peer has gone cannot
  // raise SIGPIPE.
  auto pipe = a.open(a.pipe_fd, O_RDWR | O_NONBLOCK);
  if (!pipe.ok()) return pipe.status();
  peer.pipe = std::move(*pipe);
  return {};
}

// What this rank can do with the peer's memory; nothing depends on it but speed, so failures are not errors.
uint32_t ShmTransport::probe_reads(ShmPeer& peer) {
  uint32_t reads = kReadsKnown;
  if (auto file = peer.address.open(peer.address.directory_fd, O_RDONLY); file.ok()) {
    if (lseek(file->get(), 0, SEEK_END) == static_cast<off_t>(sizeof(region::Directory))) {
      peer.directory = Mapping::of(file->get(), 0, sizeof(region::Directory), false);
      if (peer.directory.ok()) reads |= kReadsRegions;
    }
  }
  if (options_.remote_bytes > options_.slot_bytes) return reads;
  uint64_t nonce = 0;
  if (read_memory(peer.address.pid, peer.segment()->probe, reinterpret_cast<std::byte*>(&nonce), sizeof nonce,
                  &counters_.system_calls) &&
      nonce == peer.address.nonce) {
    if (!options_.weigh_reads || reads_pay(peer.address.pid, peer.segment()->sample)) {
      reads |= kReadsMemory;
    } else {
      log::debug("shm: memory of other processes is copied, since reading it takes longer here");
    }
  } else {
    log::info("shm: memory of process {} cannot be read directly ({}): large messages are copied", peer.address.pid,
              std::strerror(errno));
  }
  return reads;
}

RingTransport::Rings ShmTransport::rings(int peer, int lane) {
  const size_t offset = static_cast<size_t>(lane) * geometry_.ring_bytes();
  return {at(peer).block.data() + offset, own_.data() + layout_.block_offset(peer) + offset};
}

// ---- waking, and finding out who has ended ----

void ShmTransport::ring(int peer) {
  const char byte = 1;
  // A full pipe wakes the peer just as well.
  [[maybe_unused]] auto n = write(at(peer).pipe.get(), &byte, 1);
}

void ShmTransport::poll_system() {
  epoll_event events[16];
  ++counters_.system_calls;
  const int n = epoll_wait(epoll_.get(), events, 16, 0);
  for (int i = 0; i < n; ++i) {
    const int rank = static_cast<int>(events[i].data.u32);
    if (rank == rank_) {
      char bytes[256];  // what is left in the pipe wakes again
      ++counters_.system_calls;
      [[maybe_unused]] auto read_bytes = read(pipe_read_.get(), bytes, sizeof bytes);
      continue;
    }
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, at(rank).process.get(), nullptr);
    peer_ended(rank, Status(Code::kPeerLost, fmt::format("process {} on this host ended", at(rank).address.pid)));
  }
  for (auto& peer : peers_) {
    if (!peer.imports.empty()) sweep_imports(peer);
  }
}

// ---- by reference ----

// Would the kernel read this memory for somebody else? Not where a driver has mapped it, as some do memory of a
// device or memory that they have pinned: a processor may load from there, and copies it. To ask costs a tenth of a
// read of 128 KiB, so a rank does that only since a peer has refused something.
bool ShmTransport::is_readable(const std::byte* data, size_t bytes) {
  return std::ranges::all_of(std::array{data, data + bytes - 1}, [&](const std::byte* at) {
    std::byte byte;
    return read_memory(::getpid(), reinterpret_cast<uint64_t>(at), &byte, 1, &counters_.system_calls);
  });
}

SlotKind ShmTransport::refer(int rank, const std::byte* data, size_t bytes, Reference* reference) {
  ShmPeer& peer = at(rank);
  if (peer.reads == 0) peer.reads = reads_word(peer.segment(), rank_).load(std::memory_order_acquire);
  const auto address = reinterpret_cast<uint64_t>(data);
  if ((peer.reads & kReadsRegions) != 0 && bytes >= options_.region_bytes) {
    if (const region::Region* region = finder_.find(data, bytes)) {
      *reference = Reference{.address = address,
                             .region = region->id,
                             .offset = static_cast<uint64_t>(data - region->base),
                             .entry = region->entry,
                             .claim = kAccepted,
                             .place = 0};
      return SlotKind::kRegion;
    }
  }
  if ((peer.reads & kReadsMemory) != 0 && bytes >= options_.remote_bytes && (!wary_ || is_readable(data, bytes))) {
    *reference = Reference{.address = address};
    return SlotKind::kRemote;
  }
  return SlotKind::kSlot;
}

const std::byte* ShmTransport::resolve(int rank, SlotLine& line, bool*) {
  if (line.kind != SlotKind::kRegion) return nullptr;
  const Import* import = find_import(at(rank), line.reference);
  // A region that cannot be mapped (this process has no room, or its owner died) can perhaps be read: fetch() tries.
  if (import == nullptr || line.reference.offset + line.bytes > import->memory.bytes()) return nullptr;
  return import->memory.data() + line.reference.offset;
}

const Import* ShmTransport::find_import(ShmPeer& peer, const Reference& reference) {
  if (peer.last_import < peer.imports.size() && peer.imports[peer.last_import].id == reference.region) {
    return &peer.imports[peer.last_import];
  }
  for (size_t i = 0; i < peer.imports.size(); ++i) {
    if (peer.imports[i].id != reference.region) continue;
    peer.last_import = i;
    return &peer.imports[i];
  }
  sweep_imports(peer);
  if (reference.entry >= region::kMaxShared) return nullptr;
  const auto& entry = peer.regions()->entries[reference.entry];
  auto file = peer.address.open(static_cast<int>(load(entry.fd)), O_RDONLY);
  if (!file.ok()) return nullptr;
  Import import{reference.region, reference.entry, Mapping::of(file->get(), 0, load(entry.bytes), false)};
  // The owner clears the entry before it closes the file: if the id is still there, this is the right file.
  if (!import.memory.ok() || load(entry.id) != reference.region) return nullptr;
  peer.last_import = peer.imports.size();
  peer.imports.push_back(std::move(import));
  return &peer.imports.back();
}

// Unmaps what the peer has freed. Not after it has stopped: then it may free memory of puts that the executor here is
// still reading, and the mappings go with this transport.
void ShmTransport::sweep_imports(ShmPeer& peer) {
  const uint64_t freed = load(peer.regions()->freed);
  if (freed == peer.freed) return;
  const auto stale = std::partition(peer.imports.begin(), peer.imports.end(), [&](const Import& import) {
    return load(peer.regions()->entries[import.entry].id) == import.id;
  });
  // What was freed after a stop is not seen to be free before the stop is.
  if (load(peer.segment()->bell.stopped) != 0) return;
  peer.freed = freed;
  peer.imports.erase(stale, peer.imports.end());
}

Status ShmTransport::fetch(int rank, const SlotLine& line, std::byte* destination) {
  const Address& a = at(rank).address;
  if (read_memory(a.pid, line.reference.address, destination, line.bytes, &counters_.system_calls)) {
    return still_there(rank, line.bytes);
  }
  const int error = errno;
  // This process has lost its rights, or never had them: it is to get no more of these.
  if (error == EPERM) {
    reads_word(segment(), rank).fetch_and(~uint32_t{kReadsMemory}, std::memory_order_release);
  }
  return {error == ESRCH ? Code::kPeerLost : Code::kUnavailable,
          fmt::format("reading {} bytes of process {}: {}", line.bytes, a.pid, std::strerror(error))};
}

bool ShmTransport::refused(int rank, const std::byte* data, size_t bytes) {
  at(rank).reads = 0;  // to be looked up again
  wary_ = true;
  const uintptr_t skipped = reinterpret_cast<uintptr_t>(data) % kPageBytes;
  return msync(const_cast<std::byte*>(data - skipped), skipped + bytes, MS_ASYNC) == 0;  // fails where nothing is
}

}  // namespace

Result<std::unique_ptr<transport::Transport>> make(int rank, int size, uint64_t communicator_nonce,
                                                   const Options& options) {
  if (size < 1 || rank < 0 || rank >= size) return Status(Code::kInvalid, fmt::format("rank {} of {}", rank, size));
  RINGFOLD_TRY(check_geometry(options.slots, options.slot_bytes, std::max(options.slots, options.lines)));
  auto transport = std::make_unique<ShmTransport>(rank, size, options);
  RINGFOLD_TRY(transport->create(communicator_nonce));
  return std::unique_ptr<transport::Transport>(std::move(transport));
}

}  // namespace ringfold::shm
