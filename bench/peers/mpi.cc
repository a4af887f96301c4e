// Open MPI and MPICH: one source, compiled against each.
//
// MPI has no bf16 and no f16. Their sums are a user's MPI_Op over two bytes, for which it gets the kernel that
// Ringfold itself uses: widened to f32, added, rounded once. So what differs is the library and not the addition; the
// rows say "user_op_f32".
#include <mpi.h>

#include <array>
#include <cstddef>
#include <map>
#include <string_view>

#include "bench/peers/peer.h"
#include "kernels/reducer.h"

namespace ringfold::peers {
namespace {

using cli::Buffers;
using cli::Call;
using cli::Case;
using cli::Layout;
using cli::Memory;
using cli::Operation;

template <DataType kType>
void add_narrow(void* in, void* in_out, int* elems, MPI_Datatype*) {
  static const auto kReducer = kernels::find_cpu_reducer(kType, ReduceKind::kSum);
  const std::array<const void*, 2> inputs = {in, in_out};
  kReducer.fold(in_out, inputs.data(), 2, static_cast<size_t>(*elems), {});
}

bool is_narrow(DataType type) { return type == DataType::kF16 || type == DataType::kBF16; }

// Everything that a call needs, with requests for those that are in flight.
struct Setting {
  Case c;
  Buffers buffers;
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Op op = MPI_OP_NULL;
  int count = 0, rank = 0, partner = -1;
  std::vector<MPI_Request> requests;

  void* input() const { return buffers.in_place ? MPI_IN_PLACE : buffers.input; }
  bool is_root() const { return rank == c.root; }
};
using Start = int (*)(Setting& s);

int ping_pong(Setting& s) {
  if (s.partner < 0) return MPI_SUCCESS;
  const bool first = s.partner > s.rank;
  if (first) MPI_Send(s.buffers.input, s.count, s.type, s.partner, 0, MPI_COMM_WORLD);
  const int result = MPI_Recv(s.buffers.output, s.count, s.type, s.partner, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  if (!first) MPI_Send(s.buffers.input, s.count, s.type, s.partner, 0, MPI_COMM_WORLD);
  return result;
}

// The last word back has a tag of its own and no bytes.
int stream(Setting& s) {
  if (s.partner < 0) return MPI_SUCCESS;
  const bool sends = s.partner > s.rank;
  const size_t step = s.c.block * size_of(s.c.type), window = s.requests.size() - 1;
  for (size_t i = 0; i < window; ++i) {
    if (sends) {
      MPI_Isend(static_cast<char*>(s.buffers.input) + i * step, s.count, s.type, s.partner, 0, MPI_COMM_WORLD,
                &s.requests[i]);
    } else {
      MPI_Irecv(static_cast<char*>(s.buffers.output) + i * step, s.count, s.type, s.partner, 0, MPI_COMM_WORLD,
                &s.requests[i]);
    }
  }
  if (sends) MPI_Irecv(nullptr, 0, MPI_BYTE, s.partner, 1, MPI_COMM_WORLD, &s.requests[window]);
  const auto all = static_cast<int>(sends ? window + 1 : window);
  const int result = MPI_Waitall(all, s.requests.data(), MPI_STATUSES_IGNORE);
  if (!sends) MPI_Send(nullptr, 0, MPI_BYTE, s.partner, 1, MPI_COMM_WORLD);
  return result;
}

const std::map<std::string_view, Start>& starts() {
  static const std::map<std::string_view, Start> kStarts = {
      {"all_reduce",
       [](Setting& s) { return MPI_Allreduce(s.input(), s.buffers.output, s.count, s.type, s.op, MPI_COMM_WORLD); }},
      {"reduce",
       [](Setting& s) {
         void* input = s.is_root() ? s.input() : s.buffers.input;
         return MPI_Reduce(input, s.buffers.output, s.count, s.type, s.op, s.c.root, MPI_COMM_WORLD);
       }},
      {"reduce_scatter",
       [](Setting& s) {
         return MPI_Reduce_scatter_block(s.input(), s.buffers.output, s.count, s.type, s.op, MPI_COMM_WORLD);
       }},
      {"all_gather",
       [](Setting& s) {
         return MPI_Allgather(s.input(), s.count, s.type, s.buffers.output, s.count, s.type, MPI_COMM_WORLD);
       }},
      {"broadcast",
       [](Setting& s) { return MPI_Bcast(s.buffers.output, s.count, s.type, s.c.root, MPI_COMM_WORLD); }},
      {"gather",
       [](Setting& s) {
         void* input = s.is_root() ? s.input() : s.buffers.input;
         return MPI_Gather(input, s.count, s.type, s.buffers.output, s.count, s.type, s.c.root, MPI_COMM_WORLD);
       }},
      {"scatter",
       [](Setting& s) {
         void* output = s.is_root() && s.buffers.in_place ? MPI_IN_PLACE : s.buffers.output;
         return MPI_Scatter(s.buffers.input, s.count, s.type, output, s.count, s.type, s.c.root, MPI_COMM_WORLD);
       }},
      {"all_to_all",
       [](Setting& s) {
         return MPI_Alltoall(s.input(), s.count, s.type, s.buffers.output, s.count, s.type, MPI_COMM_WORLD);
       }},
      {"barrier", [](Setting&) { return MPI_Barrier(MPI_COMM_WORLD); }},
      {"sendrecv", ping_pong},
      {"stream", stream},
  };
  return kStarts;
}

// Errors end the process with MPI's own message (its default), so a call that returns has worked.
class MpiCall final : public Call {
 public:
  MpiCall(Setting setting, Start start) : setting_(std::move(setting)), start_(start) {}
  Status run() override {
    start_(setting_);
    return {};
  }

 private:
  Setting setting_;
  const Start start_;
};

class Mpi final : public cli::Library {
 public:
  explicit Mpi(std::string transport) : transport_(std::move(transport)) {
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Type_contiguous(2, MPI_BYTE, &narrow_);
    MPI_Type_commit(&narrow_);
    MPI_Op_create(&add_narrow<DataType::kF16>, 1, &add_f16_);
    MPI_Op_create(&add_narrow<DataType::kBF16>, 1, &add_bf16_);
    Name own{};
    int length = 0;
    MPI_Get_processor_name(own.data(), &length);
    hosts_.resize(static_cast<size_t>(size_));
    MPI_Allgather(own.data(), sizeof(Name), MPI_CHAR, hosts_.data(), sizeof(Name), MPI_CHAR, MPI_COMM_WORLD);
  }
  Mpi(const Mpi&) = delete;
  ~Mpi() override {
    MPI_Op_free(&add_f16_);
    MPI_Op_free(&add_bf16_);
    MPI_Type_free(&narrow_);
    MPI_Finalize();
  }

  std::string about() const override {
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    MPI_Get_library_version(text.data(), &length);
    std::string first = text.data();  // "Open MPI v4.1.4, package: ..." or "MPICH Version:\t4.0.2\n..."
    first = first.substr(0, first.find_first_of(",\n"));
    const auto version = first.find_first_of("0123456789");
    return first.substr(0, first.find_first_of(" \t", 5)).append(" ").append(first, version, first.npos);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string host_of(int rank) const override { return hosts_[static_cast<size_t>(rank)].data(); }
  std::string transport() const override { return transport_; }
  Result<Memory> allocate(size_t bytes) override { return aligned_memory(bytes); }

  std::vector<std::string> variants(const Operation& operation, const Case& c, bool in_place) const override {
    if (!starts().contains(operation.name())) return {};
    if (operation.name() == "broadcast" && !in_place) return {};  // MPI_Bcast has one buffer
    if (operation.reduced() && op_of(c) == MPI_OP_NULL) return {};
    return {""};
  }
  // MPI_Reduce_scatter_block leaves the rank's block at the start of the buffer that held the input.
  Layout layout(const Operation& operation, const Case& c, bool in_place) const override {
    Layout layout = operation.layout(c, rank_);
    if (in_place && operation.name() == "reduce_scatter") layout.output_at = 0;
    return layout;
  }
  Result<std::unique_ptr<Call>> prepare(const Operation& operation, const Case& c, const std::string&,
                                        const Buffers& buffers) override {
    Setting setting{c, buffers, type_of(c.type), op_of(c), static_cast<int>(c.block), rank_, -1, {}};
    if (!operation.collective()) {
      setting.partner = cli::partner_of(rank_, size_);
      setting.requests.resize(operation.transfers(c) + 1);
    }
    return std::unique_ptr<Call>(
        std::make_unique<MpiCall>(std::move(setting), starts().find(operation.name())->second));
  }
  std::string algorithm(const Operation& operation, const Case& c, const std::string&) const override {
    return operation.reduced() && is_narrow(c.type) ? "user_op_f32" : "-";
  }
  Status barrier() override {
    MPI_Barrier(MPI_COMM_WORLD);
    return {};
  }
  Status agree(std::span<double> values, ReduceKind kind) override {
    MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_DOUBLE,
                  kind == ReduceKind::kMax ? MPI_MAX : MPI_SUM, MPI_COMM_WORLD);
    return {};
  }

 private:
  using Name = std::array<char, MPI_MAX_PROCESSOR_NAME>;

  MPI_Datatype type_of(DataType type) const {
    switch (type) {
      case DataType::kF64: return MPI_DOUBLE;
      case DataType::kF32: return MPI_FLOAT;
      case DataType::kF16:
      case DataType::kBF16: return narrow_;
      case DataType::kI8: return MPI_INT8_T;
      case DataType::kU8: return MPI_UINT8_T;
      case DataType::kI32: return MPI_INT32_T;
      case DataType::kU32: return MPI_UINT32_T;
      case DataType::kI64: return MPI_INT64_T;
      case DataType::kU64: return MPI_UINT64_T;
    }
    return MPI_DATATYPE_NULL;
  }
  MPI_Op op_of(const Case& c) const {
    if (is_narrow(c.type)) {
      if (c.op.kind != ReduceKind::kSum) return MPI_OP_NULL;
      return c.type == DataType::kF16 ? add_f16_ : add_bf16_;
    }
    switch (c.op.kind) {
      case ReduceKind::kSum: return MPI_SUM;
      case ReduceKind::kProd: return MPI_PROD;
      case ReduceKind::kMin: return MPI_MIN;
      case ReduceKind::kMax: return MPI_MAX;
      default: return MPI_OP_NULL;
    }
  }

  const std::string transport_;
  int rank_ = 0, size_ = 1;
  MPI_Datatype narrow_ = MPI_DATATYPE_NULL;
  MPI_Op add_f16_ = MPI_OP_NULL, add_bf16_ = MPI_OP_NULL;
  std::vector<Name> hosts_;
};

}  // namespace

const char* const kProgram = RINGFOLD_PEER;

Result<std::unique_ptr<cli::Library>> join(const PeerOptions& options) {
  return std::unique_ptr<cli::Library>(std::make_unique<Mpi>(options.transport));
}

}  // namespace ringfold::peers
