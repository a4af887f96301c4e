// A network of RDMA devices inside the test's process, in place of libibverbs: it holds the transport to the rules of
// verbs (keys, ranges, states, room in every queue, receives for every immediate), delays what is posted as a network
// does, and fails on order in ways that no real device can be asked for. Threads as with libibverbs.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transports/verbs/library.h"
#include "transports/verbs/verbs.h"

namespace ringfold::transport::test {

class VerbsDouble {
 public:
  struct Settings {
    int devices = 1;
    int most_inline = 512;
    int most_completions = 32767;
    // Each write is delivered after 0 to so many microseconds, in order on its queue pair; 0: at once.
    int lag_us = 0;
    unsigned seed = 1;
    bool iwarp = false;
    ibv_port_state state = IBV_PORT_ACTIVE;
    ibv_mtu mtu = IBV_MTU_4096;  // active; 4096 is the most
    int gids = 2;                // of a port: link-local, then IPv4
    uint32_t gid_type = 2;       // InfiniBand, RoCE v1, v2
    int dma_buf_error = EBADF;   // what registering no file by dma-buf gives, and other than EBADF, what any file
                                 // gives; 0: there is no such call
  };
  explicit VerbsDouble(const Settings& settings);
  ~VerbsDouble();  // reports as failures what was not given back
  VerbsDouble(const VerbsDouble&) = delete;
  VerbsDouble& operator=(const VerbsDouble&) = delete;

  const verbs::Library* api() const;

  // ---- faults; each is of the whole network ----
  // The write after `writes` more ones ends with `status`, and its queue pair is in error.
  void end_write_with(ibv_wc_status status, int writes = 0);
  // Of all writes that are posted from now on, the payload never gets through and the peer is given up.
  void cut();
  void hold(bool on);                                // with a lag: nothing gets through until it ends
  void refuse_sends(int error, int writes = 0);      // ibv_post_send returns this, from the next but `writes` on
  void refuse_receives(int error, int accepted);     // ibv_post_recv takes so many of a list, then returns this; once
  void refuse_registration(int error, int regions);  // reg_mr fails after so many more
  void limit_registration(size_t bytes);             // ENOMEM above this many at a time
  void refuse_queue_pairs(int error, int count);
  void remove_devices();  // an asynchronous event; nothing moves after it
  void event(ibv_event_type type,
             int device = -1);       // of port 1 where it is of one; of every device; without consequences
  void replace_note(uint32_t note);  // the next write's immediate data is replaced by this

  struct Live {
    int contexts = 0, domains = 0, regions = 0, channels = 0, queues = 0, queue_pairs = 0;
    friend bool operator==(const Live&, const Live&) = default;
  };
  Live live() const;
  // Regions of memory of other devices, as files: how many there are, and ever were.
  int dma_bufs() const;
  int dma_bufs_ever() const;
  uint64_t polls() const;  // calls of ibv_poll_cq so far
  // What was done against the rules of verbs, if anything.
  std::vector<std::string> complaints() const;

  struct Network;

 private:
  std::unique_ptr<Network> network_;
};

// Options for ranks on that network.
inline verbs::Options options_on(const VerbsDouble& network, verbs::Options options = {}) {
  options.api = network.api();
  options.root = "/nowhere";  // this machine's own devices do not count
  return options;
}

}  // namespace ringfold::transport::test
