#include "train/idx.h"

#include <fmt/format.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace ringfold::train {
namespace {

constexpr size_t kMaxElems = size_t{1} << 30;  // before memory is asked for on the word of a header

struct Close {
  void operator()(gzFile file) const { gzclose_r(file); }
};
using File = std::unique_ptr<gzFile_s, Close>;

// Reads up to `bytes`; fewer only at the end of the file.
Result<size_t> read(gzFile file, const std::string& path, uint8_t* into, size_t bytes) {
  size_t got = 0;
  while (got < bytes) {
    const int n = gzread(file, into + got, static_cast<unsigned>(bytes - got));
    int code = Z_OK;
    const char* why = gzerror(file, &code);
    if (n < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      if (code == Z_BUF_ERROR)
        return Status(Code::kInvalid, fmt::format("{}: the compressed file is cut short", path));
      if (code == Z_ERRNO) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
      return Status(Code::kInvalid, fmt::format("{}: broken compressed data: {}", path, why));
    }
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  return got;
}

uint32_t big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

}  // namespace

Result<IdxArray> read_idx(const std::string& path, size_t rank) {
  File file(gzopen(path.c_str(), "rb"));
  if (!file) return Status(Code::kIo, fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  gzbuffer(file.get(), 1U << 17);

  std::vector<uint8_t> header(4 + 4 * rank);
  auto got = read(file.get(), path, header.data(), header.size());
  if (!got.ok()) return got.status();
  if (*got >= 4) {
    const uint32_t magic = big_endian(header.data()), expected = 0x0800 | static_cast<uint32_t>(rank);
    if (magic != expected) {
      return Status(
          Code::kInvalid,
          fmt::format("{}: not an IDX file of {} dimensions of bytes: it begins with {:#010x}, not {:#010x}", path,
                      rank, magic, expected));
    }
  }
  if (*got < header.size()) {
    return Status(Code::kInvalid,
                  fmt::format("{}: ends within its header, after {} of {} bytes", path, *got, header.size()));
  }

  IdxArray array;
  size_t elems = 1;
  for (size_t d = 0; d < rank; ++d) {
    array.dims.push_back(big_endian(header.data() + 4 + 4 * d));
    const size_t dim = array.dims.back();
    if (dim != 0 && elems > kMaxElems / dim) {
      return Status(Code::kInvalid, fmt::format("{}: its header claims more than {} bytes of data", path, kMaxElems));
    }
    elems *= dim;
  }
  array.elems.resize(elems + 1);  // one more, to see whether the file ends here
  got = read(file.get(), path, array.elems.data(), array.elems.size());
  if (!got.ok()) return got.status();
  if (*got < elems) {
    return Status(Code::kInvalid, fmt::format("{}: truncated: {} of {} bytes of data", path, *got, elems));
  }
  if (*got > elems) {
    return Status(Code::kInvalid,
                  fmt::format("{}: longer than the {} bytes of data that its header claims", path, elems));
  }
  array.elems.resize(elems);
  return array;
}

}  // namespace ringfold::train
