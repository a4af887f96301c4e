#include "train/device.h"

#include <fmt/format.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cstdlib>

namespace ringfold::train {
namespace {

// Which of a host's ranks this is, by the launcher's word; of all ranks, where no launcher says it.
int place_on_host(int rank) {
  for (const char* name : {"RINGFOLD_LOCAL_RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                           "SLURM_LOCALID", "PMIX_LOCAL_RANK"}) {
    if (const char* value = std::getenv(name); value != nullptr && *value != '\0') return std::atoi(value);
  }
  return rank;
}

class TensorGradients final : public sync::DeviceGradients {
 public:
  explicit TensorGradients(c10::Device device) : device_(device) {}
  Result<float*> make(size_t elems) override {
    try {
      memory_ = torch::zeros({static_cast<int64_t>(elems)}, torch::TensorOptions(torch::kFloat).device(device_));
    } catch (const c10::Error& e) {
      return Status(Code::kUnavailable,
                    fmt::format("gradients on {}: {}", device_.str(), e.what_without_backtrace()));
    }
    return memory_.data_ptr<float>();
  }
  void zero() override { memory_.zero_(); }
  void wait() override { wait_for(device_); }
  void fetch(float* to, size_t offset, size_t elems) override {
    const auto n = static_cast<int64_t>(elems);
    torch::from_blob(to, {n}, torch::kFloat).copy_(memory_.narrow(0, static_cast<int64_t>(offset), n));
  }

 private:
  const c10::Device device_;
  torch::Tensor memory_;
};

}  // namespace

Result<std::optional<c10::Device>> device_of(const Args& args, int rank) {
  if (args.device.empty()) return std::optional<c10::Device>();
  if (args.pipeline > 1 || args.tensor_parallel > 1) {
    return Status(Code::kInvalid, fmt::format("--device is for ranks with whole models: not with {}",
                                              args.pipeline > 1 ? "--pipeline" : "--tensor-parallel"));
  }
  if (args.device == "cpu") return std::optional(c10::Device(c10::kCPU));
  const std::string text = args.device;
  const bool numbered = text.starts_with("cuda:") && text.size() > 5 && text.size() < 9 &&
                        text.find_first_not_of("0123456789", 5) == std::string::npos;
  if (text != "cuda" && !numbered) {
    return Status(Code::kInvalid, fmt::format("--device {} is none of cpu, cuda and cuda:N", text));
  }
  if (!torch::cuda::is_available()) {
    const bool built = torch::show_config().find("CUDA Runtime") != std::string::npos;
    return Status(
        Code::kUnavailable,
        fmt::format("--device {}: {}", text,
                    built ? "libtorch finds no GPU on this machine: see what nvidia-smi and `ringfold info` say"
                          : "this ringfold-train was built with a libtorch without CUDA (Debian's has none): "
                            "build it with one that has, meson setup -Dlibtorch=FOLDER, or leave --device "
                            "out"));
  }
  const int count = static_cast<int>(torch::cuda::device_count());
  const int number = numbered ? std::atoi(text.c_str() + 5) : place_on_host(rank) % count;
  if (number >= count) {
    return Status(Code::kUnavailable, fmt::format("--device {}: this process sees {} GPUs", text, count));
  }
  return std::optional(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(number)));
}

std::shared_ptr<sync::DeviceGradients> gradients_on(c10::Device device) {
  return std::make_shared<TensorGradients>(device);
}

void wait_for(c10::Device device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

}  // namespace ringfold::train
