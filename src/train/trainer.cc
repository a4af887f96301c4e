#include "train/trainer.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "sync/mesh.h"
#include "train/loop.h"
#include "train/model.h"
#include "train/pipelined.h"
#include "train/plan.h"

namespace ringfold::train {

void use_one_thread() {
  at::set_num_threads(1);
  // OpenBLAS has threads of its own, and has read its variables when it was loaded, before main().
  if (void* set = dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<void (*)(int)>(set)(1);
  } else if (!dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads")) {
    fmt::print(
        stderr,
        "ringfold-train: libtorch runs without OpenBLAS or MKL, which makes training many times slower; on Debian, "
        "install libopenblas0-pthread\n");
  }
}

namespace {

Result<std::unique_ptr<Passes>> make_passes(const Axes& axes, TensorGroup* tensor, const Args& args,
                                            const Dataset& data) {
  auto device = device_of(args, axes.job.rank());
  if (!device.ok()) return device.status();
  if (axes.pipeline() != nullptr)
    return PipelinedPasses::make(axes.job, *axes.pipeline(), tensor, data, args, axes.data().size());
  return std::make_unique<Passes>(make_model(args.spec(), args.seed, tensor), data, *device);
}

}  // namespace

Result<Summary> train(Communicator& comm, const Args& asked, const Dataset& data, Reporter& reporter,
                      std::vector<float>* parameters) {
  Args args = asked;
  RINGFOLD_TRY(check(args.spec(), args.tensor_parallel));
  const bool cut = args.cut();
  if (cut && args.sync == "asgd") {
    return Status(Code::kInvalid,
                  fmt::format("--sync asgd lets replicas step at their own pace, and {} needs the ranks "
                              "of a replica to step together: take another --sync",
                              args.pipeline > 1 ? "--pipeline" : "--tensor-parallel"));
  }
  const auto mesh = sync::Mesh::make(comm.size(), args.pipeline, args.tensor_parallel);
  if (!mesh.ok()) return mesh.status();
  sync::MeshCommunicators parts;
  std::optional<TensorGroup> tensor;
  if (cut) {
    auto made = sync::split(comm, *mesh);
    if (!made.ok()) return made.status();
    parts = std::move(*made);
    if (args.tensor_parallel > 1) tensor.emplace(parts.tensor);
  }
  Communicator crew;
  std::optional<Agent> agent;
  const bool joins = comm.epoch() > 0;  // a run that goes on: it knows what the agent has decided
  if (joins && (cut || (!args.elastic && args.goal.empty()))) {
    return Status(Code::kInvalid, "a rank that comes back can join an --elastic run of whole replicas only");
  }
  if (joins && !args.goal.empty()) args.elastic = true;
  if (!args.goal.empty() && !joins) {
    auto planned = plan_run(comm, args, data, reporter, &crew);
    if (!planned.ok()) return planned.status();
    if (!planned->has_value() || args.dry_run) return Summary{.left_out = true};
    agent = std::move(*planned);
  }
  Communicator& job = crew.impl() ? crew : comm;
  const Axes axes{.job = job, .parts = cut ? &parts : nullptr};
  std::unique_ptr<Loop> loop;
  Status failed;
  try {
    const auto make = [&](const Args& now) { return make_passes(axes, tensor ? &*tensor : nullptr, now, data); };
    loop = std::make_unique<Loop>(axes, make, args, data, reporter, comm.rank() == 0);
    failed = loop->prepare();
    if (failed.code() == Code::kInvalid && failed.verdict() == nullptr) return failed;  // as on all ranks
    if (failed.ok() && agent) failed = loop->watched_by(std::move(*agent));
    if (failed.ok()) {
      auto summary = loop->run();
      if (summary.ok() && parameters && !summary->left_out) loop->copy_parameters(*parameters);
      if (summary.ok()) return summary;
      failed = summary.status();
    }
  } catch (const CommunicationError& e) {
    failed = e.status();
  } catch (const c10::Error& e) {
    failed = Status(Code::kInternal, std::string("libtorch: ") + e.what_without_backtrace());
  } catch (const std::exception& e) {
    failed = Status(Code::kInternal, std::string("libtorch: ") + e.what());
  }
  // Perhaps in the middle of a step, with calls in flight that the peers will never match: end those before the
  // loop goes. And a failure that the ranks along one axis of the mesh know of is one for all.
  for (Communicator* c : {axes.tensor(), axes.pipeline(), &axes.data(), &comm}) {
    if (c != nullptr) c->abort(failed.message());
  }
  if (!cut) return failed;
  // What all survivors share, with the culprit's rank in the job.
  const Status shared = comm.barrier().wait();
  return shared.verdict() ? shared : failed;
}

}  // namespace ringfold::train
