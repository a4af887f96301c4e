// What this machine can do at most: the figures that measured collectives are held against. Each is the best of a few
// short tries, as a limit is what the hardware gives and not what others leave over; latencies are medians of the
// best try.
#pragma once

#include <string>
#include <vector>

namespace ringfold::limits {

struct Figure {
  std::string name, unit;
  double value = 0;
};
using Figures = std::vector<Figure>;

// Copies and sums in cache and in memory, by one and by two threads at once. GB/s (10^9 bytes) of what is written.
void add_memory(Figures* figures);
// A word in shared memory from one core to another, and between threads that share a core.
void add_exchange(Figures* figures);
// TCP over the loopback interface.
void add_sockets(Figures* figures);

// A link between two hosts or network namespaces: `serve` waits for one partner and does its part, `reach` measures
// one-way time and the rate of one stream as it arrives. Exit statuses.
int serve(const std::string& address, int port);
int reach(const std::string& address, int port, double seconds, Figures* figures);

// ---- shared by the above ----

// The processors this process may use.
std::vector<int> processors();
// Moves the calling thread to one of them.
void pin(int processor);

}  // namespace ringfold::limits
