// Does a rank still stand by what it has put?
//
// Where UCX reads a peer's memory itself, it does so when the receiver comes to it, and needs nobody there: not even
// that the sender still runs. One that has given up meanwhile has its memory back and may have written there. So each
// transport keeps a word that says that it goes on, in a page that peers of its host map, and a receiver looks there
// after it has read. (Over everything else it is the sender, or its queue pair, that moves the bytes, and that has an
// end with its transport.)
#pragma once

#include <cstdint>

#include "base/fd.h"
#include "base/mapping.h"

namespace ringfold::transport::ucx {

class Standing {
 public:
  // Where the word is: /proc/PID/fd/FD, which holds `value` while its owner goes on.
  struct Place {
    int pid = 0, fd = -1;
    uint64_t value = 0;
  };
  // That of a peer; without a place here (another PID namespace, another user) it is not known().
  static Standing of(const Place& place);
  // This rank's own. Not known() where the system has no page left for it.
  static Standing mine();
  Place place() const;

  bool known() const { return page_.ok(); }
  // Has its owner not given up yet? Who has read what was written after end() hears of that here.
  bool holds() const;
  void end();

 private:
  base::Fd file_;
  base::Mapping page_;
  uint64_t value_ = 0;
};

}  // namespace ringfold::transport::ucx
