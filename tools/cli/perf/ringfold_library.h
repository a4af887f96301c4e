// Ringfold behind the interface of the bench.
#pragma once

#include "ringfold/communicator.h"
#include "tools/cli/cli.h"
#include "tools/cli/perf/library.h"

namespace ringfold::cli {

class RingfoldLibrary final : public Library {
 public:
  RingfoldLibrary(Communicator& comm, const PerfOptions& options) : comm_(comm), options_(options) {}
  std::string about() const override;
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  std::string host_of(int rank) const override { return comm_.host_of(rank); }
  std::string transport() const override;
  Result<Memory> allocate(size_t bytes) override;
  std::vector<std::string> variants(const Operation&, const Case&, bool) const override { return {""}; }
  Result<std::unique_ptr<Call>> prepare(const Operation& operation, const Case& c, const std::string& variant,
                                        const Buffers& buffers) override;
  std::string algorithm(const Operation& operation, const Case& c, const std::string& variant) const override;
  Codec codec(const Operation& operation, const Case& c) const override;
  ringfold::Counters counters() override { return comm_.counters(); }
  Status barrier() override { return comm_.barrier().wait(); }
  Status agree(std::span<double> values, ReduceKind kind) override;

 private:
  Communicator& comm_;
  const PerfOptions& options_;
};

}  // namespace ringfold::cli
