#include "exec/direct.h"

#include <fmt/format.h>

#include <algorithm>

namespace ringfold::exec {

Direct::Direct(transport::Direct* transport, DirectPlan plan, const std::byte* input, std::byte* output,
               uint64_t output_bytes)
    : transport_(transport),
      plan_(std::move(plan)),
      input_(input),
      output_(output),
      output_bytes_(output_bytes),
      offered_(plan_.expected.size()),
      written_(plan_.writes.size()) {}

bool Direct::has_landed(size_t i) const { return begun_ && transport_->landed(plan_.expected[i]) != before_[i]; }

bool Direct::has_landed_from(int peer) const {
  const auto at = std::find(plan_.expected.begin(), plan_.expected.end(), peer);
  return at != plan_.expected.end() && has_landed(static_cast<size_t>(at - plan_.expected.begin()));
}

Advance Direct::advance(Fault* fault) {
  if (!begun_) {
    for (int peer : plan_.expected) before_.push_back(transport_->landed(peer));
    begun_ = true;
  }
  bool progress = false, over = true;
  for (size_t i = 0; i < offered_.size(); ++i) {
    if (!offered_[i] && transport_->offer(plan_.expected[i], output_, output_bytes_)) progress = offered_[i] = true;
    over = over && has_landed(i);
  }
  for (size_t i = 0; i < written_.size(); ++i) {
    const DirectPlan::Write& w = plan_.writes[i];
    if (!written_[i] && (w.after < 0 || has_landed_from(w.after))) {
      if (const auto room = transport_->offered(w.peer)) {
        if (w.to + w.bytes > *room) {
          *fault = {FaultKind::kMismatch, w.peer,
                    Status(Code::kProtocol, fmt::format("{}: rank {} offers {} bytes, where {} are to be written",
                                                        plan_.text, w.peer, *room, w.to + w.bytes))};
          return Advance::kFault;
        }
        const std::byte* from = (w.after < 0 ? input_ : output_) + w.from;
        if (transport_->write(w.peer, from, w.bytes, w.to)) progress = written_[i] = true;
      }
    }
    over = over && written_[i] && transport_->written(w.peer);
  }
  return over ? Advance::kFinished : progress ? Advance::kProgress : Advance::kBlocked;
}

int Direct::waits_for() const {
  for (size_t i = 0; i < offered_.size(); ++i) {
    if (!has_landed(i)) return plan_.expected[i];
  }
  for (size_t i = 0; i < written_.size(); ++i) {
    if (!written_[i] || !transport_->written(plan_.writes[i].peer)) return plan_.writes[i].peer;
  }
  return -1;
}

}  // namespace ringfold::exec
