#include "train/layout.h"

#include "train/model.h"
#include "train/pipelined.h"

namespace ringfold::train {

Result<std::unique_ptr<Layout>> Layout::make(Communicator& job, const Args& args) {
  const auto mesh = sync::Mesh::make(job.size(), args.pipeline, args.tensor_parallel);
  if (!mesh.ok()) return mesh.status();
  std::unique_ptr<Layout> layout(new Layout(job, args.cut()));
  if (!layout->cut_) return layout;
  auto parts = sync::split(job, *mesh);
  if (!parts.ok()) return parts.status();
  layout->parts_ = std::move(*parts);
  if (args.tensor_parallel > 1) layout->tensor_.emplace(layout->parts_.tensor);
  return layout;
}

Result<std::unique_ptr<Passes>> Layout::make_passes(const Args& args, const Dataset& data) {
  auto device = device_of(args, job_.rank());
  if (!device.ok()) return device.status();
  TensorGroup* const tensor = tensor_ ? &*tensor_ : nullptr;
  const Axes axes = this->axes();
  if (axes.pipeline() != nullptr)
    return PipelinedPasses::make(axes.job, *axes.pipeline(), tensor, data, args, axes.data().size());
  return std::make_unique<Passes>(make_model(args.spec(), args.seed, tensor), data, *device);
}

}  // namespace ringfold::train
