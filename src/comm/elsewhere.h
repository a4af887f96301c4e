// What a callback lets go of and whose end waits for threads, of which the calling one may be one, ends on a thread
// of its own: a communicator's last handle may be dropped in a completion callback.
#pragma once

#include <functional>

namespace ringfold::comm {

// Runs `task` on that thread, in the order of the calls; at the end of the process at the latest, which waits for it.
void run_elsewhere(std::function<void()> task);

}  // namespace ringfold::comm
