#include "comm/group.h"

#include <utility>

namespace ringfold {

Group::Group() : impl_(std::make_unique<Impl>()) {}
Group::~Group() = default;
Group::Group(Group&&) noexcept = default;
Group& Group::operator=(Group&&) noexcept = default;

void Group::add(Work work) { impl_->works.push_back(std::move(work)); }

Work Group::submit() {
  Impl now = std::exchange(*impl_, {});
  for (auto& s : now.streams) {
    auto gate = device::Gate::hold(s.context, s.stream);
    if (!gate.ok()) {
      now.works.emplace_back(gate.status());
      continue;
    }
    Work::all(s.works).then(
        [open = std::make_shared<device::Gate>(*std::move(gate))](const Status&) { open->open(); });
  }
  return Work::all(std::move(now.works));
}

Result<Group::Impl::OnStream*> Group::Impl::on(device::Context context, device::Stream stream) {
  for (auto& s : streams) {
    if (s.context == context && s.stream == stream) return &s;
  }
  auto begin = device::Moment::now(context, stream);
  if (!begin.ok()) return begin.status();
  streams.push_back({context, stream, std::make_shared<device::Moment>(*std::move(begin)), {}});
  return &streams.back();
}

}  // namespace ringfold
