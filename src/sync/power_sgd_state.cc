// PowerSgd's state as bytes:
//   Head, then for each matrix: length of the name, name, rows, columns (u64), errors, Q (f32); at last a hash of it
//   all.
#include <array>
#include <cstring>
#include <map>

#include "sync/power_sgd.h"
#include "sync/replica.h"

namespace ringfold::sync {
namespace {

constexpr std::array<char, 8> kPowerSgdMagic = {'R', 'F', 'P', 'S', 'G', 'D', '0', '1'};

struct Head {
  std::array<char, 8> magic{};
  uint32_t place = 0;  // this rank
  uint32_t size = 0;   // of the communicator
  uint64_t rank = 0;   // r
  uint64_t step = 0;
  uint64_t matrices = 0;
};

class StateWriter {
 public:
  template <typename T>
  void add(std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  template <typename T>
  void add(const T& value) {
    add(std::span<const T>(&value, 1));
  }
  void add(const std::string& text) {
    add(uint64_t{text.size()});
    add(std::span<const char>(text));
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads past the end give zeros and are remembered.
class StateReader {
 public:
  explicit StateReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  void get(std::span<T> values) {
    const size_t wanted = values.size_bytes();
    if (wanted > bytes_.size()) {
      short_ = true;
      return;
    }
    if (wanted > 0) std::memcpy(values.data(), bytes_.data(), wanted);
    bytes_ = bytes_.subspan(wanted);
  }
  template <typename T>
  T get() {
    T value{};
    get(std::span<T>(&value, 1));
    return value;
  }
  std::string get_text() {
    const auto length = get<uint64_t>();
    if (length > bytes_.size()) {
      short_ = true;
      return {};
    }
    std::string text(length, '\0');
    get(std::span<char>(text));
    return text;
  }
  bool complete() const { return !short_ && bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
  bool short_ = false;
};

uint64_t checksum(std::span<const std::byte> bytes) {
  ReplicaHash hash;
  hash.add(bytes);
  return hash.value();
}

Status refused(const std::string& why) {
  return Status(Code::kInvalid, "low-rank state cannot be taken over: " + why);
}

std::string shape_text(size_t rows, size_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

}  // namespace

std::vector<std::byte> PowerSgd::export_state() const {
  StateWriter out;
  out.add(Head{.magic = kPowerSgdMagic,
               .place = static_cast<uint32_t>(comm_.rank()),
               .size = static_cast<uint32_t>(comm_.size()),
               .rank = options_.rank,
               .step = step_,
               .matrices = matrices_.size()});
  for (const Matrix& m : matrices_) {
    out.add(m.name);
    out.add(uint64_t{m.shape.rows});
    out.add(uint64_t{m.shape.cols});
    out.add(std::span(errors_).subspan(m.offset - flat_elems_, m.shape.elems()));
    out.add(std::span(q_).subspan(m.q_offset, m.shape.cols * options_.rank));
  }
  auto bytes = out.take();
  const uint64_t hash = checksum(bytes);
  const auto tail = std::as_bytes(std::span(&hash, 1));
  bytes.insert(bytes.end(), tail.begin(), tail.end());
  return bytes;
}

Status PowerSgd::import_state(std::span<const std::byte> state) {
  if (state.size() < sizeof(Head) + sizeof(uint64_t)) return refused("it is too short");
  const auto body = state.first(state.size() - sizeof(uint64_t));
  StateReader in(body);
  const Head head = in.get<Head>();
  if (head.magic != kPowerSgdMagic) return refused("it is something else, or of another version");
  if (StateReader(state.last(sizeof(uint64_t))).get<uint64_t>() != checksum(body)) return refused("it is damaged");
  if (head.size != static_cast<uint32_t>(comm_.size()) || head.place != static_cast<uint32_t>(comm_.rank())) {
    return refused("it is of rank " + std::to_string(head.place) + " of " + std::to_string(head.size) +
                   ", and this is rank " + std::to_string(comm_.rank()) + " of " + std::to_string(comm_.size()) +
                   "; begin with reset() instead");
  }
  if (head.rank != options_.rank) {
    return refused("its products have rank " + std::to_string(head.rank) + ", not " + std::to_string(options_.rank));
  }
  if (head.matrices != matrices_.size()) {
    return refused("it has " + std::to_string(head.matrices) + " matrices, not " + std::to_string(matrices_.size()));
  }
  std::map<std::string, const Matrix*> left;
  for (const Matrix& m : matrices_) left[m.name] = &m;
  std::vector<float> errors(errors_.size()), q(q_.size());
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const std::string name = in.get_text();
    const auto found = left.find(name);
    if (found == left.end()) return refused("there is no tensor '" + name + "' here, or it occurs twice");
    const Matrix& m = *found->second;
    const auto rows = in.get<uint64_t>(), cols = in.get<uint64_t>();
    if (rows != m.shape.rows || cols != m.shape.cols) {
      return refused("'" + name + "' is " + shape_text(rows, cols) + " there and " +
                     shape_text(m.shape.rows, m.shape.cols) + " here");
    }
    in.get(std::span(errors).subspan(m.offset - flat_elems_, m.shape.elems()));
    in.get(std::span(q).subspan(m.q_offset, m.shape.cols * options_.rank));
    left.erase(found);
  }
  if (!in.complete()) return refused("it is damaged");
  errors_ = std::move(errors);
  q_ = std::move(q);
  step_ = head.step;
  return {};
}

}  // namespace ringfold::sync
