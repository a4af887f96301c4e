#include "train/trainer.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "train/layout.h"
#include "train/loop.h"
#include "train/model.h"
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

Result<Summary> train(Communicator& comm, const Args& asked, const Dataset& data, Reporter& reporter,
                      std::vector<float>* parameters) {
  Args args = asked;
  RINGFOLD_TRY(check(args.spec(), args.tensor_parallel));
  if (args.cut() && args.sync == "asgd") {
    return Status(Code::kInvalid,
                  fmt::format("--sync asgd lets replicas step at their own pace, and {} needs the ranks "
                              "of a replica to step together: take another --sync",
                              args.pipeline > 1 ? "--pipeline" : "--tensor-parallel"));
  }
  Communicator crew;
  std::optional<Agent> agent;
  const bool joins = comm.epoch() > 0;  // a run that goes on: it knows what the agent has decided
  if (joins && (args.cut() || (!args.elastic && args.goal.empty()))) {
    return Status(Code::kInvalid, "a rank that comes back can join an --elastic run of whole replicas only");
  }
  if (joins && !args.goal.empty()) args.elastic = true;
  Communicator* job = &comm;
  std::unique_ptr<Layout> layout;
  std::unique_ptr<Loop> loop;
  Status failed;
  try {
    if (!args.goal.empty() && !joins) {
      auto planned = plan_run(comm, args, data, reporter, &crew);
      if (!planned.ok()) return planned.status();
      if (!planned->has_value() || args.dry_run) return Summary{.left_out = true};
      agent = std::move(*planned);
      if (crew.impl()) job = &crew;
    }
    auto laid_out = Layout::make(*job, args);
    if (!laid_out.ok()) return laid_out.status();
    layout = std::move(*laid_out);
    const auto make = [&](const Args& now) { return layout->make_passes(now, data); };
    loop = std::make_unique<Loop>(layout->axes(), make, args, data, reporter, job->rank() == 0);
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
  if (layout) {
    const Axes axes = layout->axes();
    for (Communicator* c : {axes.tensor(), axes.pipeline(), &axes.data()})
      if (c != nullptr) c->abort(failed.message());
  }
  job->abort(failed.message());
  comm.abort(failed.message());
  if (!layout || layout->axes().parts == nullptr) return failed;
  // What all survivors share, with the culprit's rank in the job.
  const Status shared = job->barrier().wait();
  return shared.verdict() ? shared : failed;
}

}  // namespace ringfold::train
