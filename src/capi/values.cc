// Failures, names, arguments and results: what is not a call of a communicator.
#include <cstddef>
#include <cstdlib>
#include <limits>

#include "capi/capi.h"

namespace ringfold::capi {
namespace {

struct LastFailure {
  Status status;
  const char* plain = "";  // instead of the message of `status`, if that is ok
};
LastFailure& last_failure() {
  thread_local LastFailure failure;
  return failure;
}

std::string number(int32_t value) { return std::to_string(value); }

// Texts of enumerators end with a zero: they are literals.
template <typename Enumerator>
const char* name_or_question(int32_t value, int32_t kinds) {
  return value < 0 || value >= kinds ? "?" : name_of(static_cast<Enumerator>(value)).data();
}

}  // namespace

ringfold_code finish(const Status& status) noexcept {
  if (status.ok()) return RINGFOLD_OK;
  last_failure().status = status;
  return static_cast<ringfold_code>(status.code());
}

ringfold_code no_memory() noexcept {
  last_failure() = {.status = {}, .plain = "no memory"};
  return RINGFOLD_INTERNAL;
}

ringfold_code unexpected() noexcept {
  try {
    throw;
  } catch (const std::exception& error) {
    try {
      return finish(Status(Code::kInternal, std::string("an exception inside Ringfold: ") + error.what()));
    } catch (...) {
      return no_memory();
    }
  } catch (...) {
    last_failure() = {.status = {}, .plain = "an exception of unknown type inside Ringfold"};
    return RINGFOLD_INTERNAL;
  }
}

Status invalid(std::string_view function, std::string_view what) {
  return Status(Code::kInvalid, std::string(function) + ": " + std::string(what));
}

Status to_type(ringfold_type value, DataType* type) {
  if (value < 0 || value >= kDataTypes) return Status(Code::kInvalid, number(value) + " is no data type");
  *type = static_cast<DataType>(value);
  return {};
}

Status to_op(ringfold_op value, double scale, ReduceOp* op) {
  if (value < 0 || value >= kReduceKinds) return Status(Code::kInvalid, number(value) + " is no reduction");
  *op = ReduceOp(static_cast<ReduceKind>(value));
  if (value != RINGFOLD_SCALED_SUM) return {};
  if (scale == 0)
    return Status(Code::kInvalid, "RINGFOLD_SCALED_SUM takes its factor from ringfold_call_options.scale");
  op->scale = scale;
  return {};
}

Status to_collective(ringfold_collective value, Collective* collective) {
  if (value < 0 || value >= kCollectives) return Status(Code::kInvalid, number(value) + " is no collective");
  *collective = static_cast<Collective>(value);
  return {};
}

Status to_codec(const ringfold_codec& value, Codec* codec) {
  const bool reserved = value.reserved[0] != 0 || value.reserved[1] != 0 || value.reserved[2] != 0;
  if (value.kind < 0 || value.kind >= kCodecKinds || value.rounding < 0 || value.rounding > 1 || value.keep < 0 ||
      value.keep > std::numeric_limits<uint16_t>::max() || reserved) {
    return Status(Code::kInvalid, "this ringfold_codec was not made by ringfold_codec_parse()");
  }
  codec->kind = static_cast<CodecKind>(value.kind);
  codec->rounding = static_cast<Rounding>(value.rounding);
  codec->rotate = value.rotate != 0;
  codec->keep = static_cast<uint16_t>(value.keep);
  codec->when_faster = value.when_faster != 0;
  return {};
}

ringfold_codec from_codec(const Codec& codec) {
  return {.kind = static_cast<int32_t>(codec.kind),
          .rounding = static_cast<int32_t>(codec.rounding),
          .rotate = codec.rotate,
          .keep = codec.keep,
          .when_faster = codec.when_faster,
          .reserved = {0, 0, 0}};
}

Status to_options(const ringfold_options* value, Options* options) {
  ringfold_options known = RINGFOLD_OPTIONS_INIT;
  RINGFOLD_TRY(read_struct("ringfold_options", value, &known));
  if (known.reserved != 0)
    return Status(Code::kInvalid, "ringfold_options.reserved is not zero: begin with RINGFOLD_OPTIONS_INIT");
  auto text = [](const char* from) { return std::string(from == nullptr ? "" : from); };
  options->rank = known.rank;
  options->size = known.size;
  options->rendezvous = text(known.rendezvous);
  options->timeout_s = known.timeout_s;
  options->transport = text(known.transport);
  options->algorithm = text(known.algorithm);
  options->key_file = text(known.key_file);
  options->codec = text(known.codec);
  options->deterministic = known.deterministic != 0;
  options->background = known.background != 0;
  options->open = known.open != 0;
  options->key = text(known.key);
  return {};
}

Status to_call_options(const ringfold_call_options* value, CallOptions* options, double* scale) {
  if (value == nullptr) return {};
  ringfold_call_options known = RINGFOLD_CALL_OPTIONS_INIT;
  RINGFOLD_TRY(read_struct("ringfold_call_options", value, &known));
  options->timeout_s = known.timeout_s;
  *scale = known.scale;
  options->stream = known.stream;
  if (known.feedback != nullptr) options->feedback = known.feedback;
  if (known.input_factor != nullptr) options->input_factor = *known.input_factor;
  if (known.label != nullptr) options->label = known.label;
  if (known.codec != nullptr) {
    Codec codec;
    RINGFOLD_TRY(to_codec(*known.codec, &codec));
    options->codec = codec;
  }
  return {};
}

Status give_text(std::string_view text, char** out) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.data(), text.size());
  copy[text.size()] = '\0';
  *out = copy;
  return {};
}

Status give_bytes(std::string_view bytes, void** out, size_t* size) {
  char* copy = nullptr;
  RINGFOLD_TRY(give_text(bytes, &copy));
  *out = copy;
  *size = bytes.size();
  return {};
}

}  // namespace ringfold::capi

using namespace ringfold;        // NOLINT: this file is the outside of that namespace
using namespace ringfold::capi;  // NOLINT

static_assert(static_cast<int>(Code::kOk) == RINGFOLD_OK && static_cast<int>(Code::kInternal) == RINGFOLD_INTERNAL &&
              static_cast<int>(Code::kPeerLost) == RINGFOLD_PEER_LOST &&
              static_cast<int>(DataType::kF64) == RINGFOLD_F64 && static_cast<int>(DataType::kU64) == RINGFOLD_U64 &&
              static_cast<int>(ReduceKind::kSum) == RINGFOLD_SUM &&
              static_cast<int>(ReduceKind::kScaledSum) == RINGFOLD_SCALED_SUM &&
              static_cast<int>(Collective::kAllReduce) == RINGFOLD_ALL_REDUCE &&
              static_cast<int>(Collective::kBarrier) == RINGFOLD_BARRIER &&
              Communicator::kAnySource == RINGFOLD_ANY_SOURCE);

// No padding at the end, whose bytes an older library would take for a member that is set.
static_assert(sizeof(ringfold_options) == offsetof(ringfold_options, key) + sizeof(char*));

const char* ringfold_version() { return version(); }

const char* ringfold_last_error() {
  const LastFailure& failure = last_failure();
  return failure.status.ok() ? failure.plain : failure.status.message().c_str();
}

int ringfold_last_verdict(ringfold_verdict* verdict) {
  const Verdict* agreed = last_failure().status.verdict();
  if (agreed == nullptr) return 0;
  const ringfold_verdict result = {.struct_size = 0,
                                   .rank = agreed->rank,
                                   .epoch = agreed->epoch,
                                   .sequence = agreed->sequence,
                                   .code = static_cast<ringfold_code>(agreed->code),
                                   .host = agreed->host.c_str(),
                                   .operation = agreed->operation.c_str(),
                                   .cause = agreed->cause.c_str()};
  return write_struct("ringfold_verdict", result, verdict).ok() ? 1 : 0;
}

const char* ringfold_code_name(ringfold_code code) {
  return name_or_question<Code>(code, static_cast<int32_t>(Code::kInternal) + 1);
}
const char* ringfold_type_name(ringfold_type type) { return name_or_question<DataType>(type, kDataTypes); }
const char* ringfold_op_name(ringfold_op op) { return name_or_question<ReduceKind>(op, kReduceKinds); }
const char* ringfold_collective_name(ringfold_collective collective) {
  return name_or_question<Collective>(collective, kCollectives);
}
size_t ringfold_type_size(ringfold_type type) {
  return type < 0 || type >= kDataTypes ? 0 : size_of(static_cast<DataType>(type));
}

void ringfold_free(void* text_or_bytes) { std::free(text_or_bytes); }

ringfold_code ringfold_allocate(void** memory, size_t bytes) {
  return guarded(__func__, {{"memory", memory}}, [&]() -> Status {
    *memory = nullptr;
    auto result = allocate(bytes);
    if (result.ok()) *memory = *result;
    return result.status();
  });
}

ringfold_code ringfold_allocate_on_device(void** memory, size_t bytes, int32_t device) {
  return guarded(__func__, {{"memory", memory}}, [&]() -> Status {
    *memory = nullptr;
    auto result = allocate(bytes, Device{device});
    if (result.ok()) *memory = *result;
    return result.status();
  });
}

void ringfold_deallocate(void* memory) { deallocate(memory); }

ringfold_code ringfold_codec_parse(const char* text, ringfold_codec* codec) {
  return guarded(__func__, {{"text", text}, {"codec", codec}}, [&]() -> Status {
    auto parsed = parse_codec(text);
    if (parsed.ok()) *codec = from_codec(*parsed);
    return parsed.status();
  });
}

ringfold_code ringfold_codec_text(const ringfold_codec* codec, char** text) {
  clear(text);
  return guarded(__func__, {{"codec", codec}, {"text", text}}, [&]() -> Status {
    Codec known;
    RINGFOLD_TRY(to_codec(*codec, &known));
    return give_text(to_string(known), text);
  });
}

ringfold_code ringfold_codec_check(const ringfold_codec* codec) {
  return guarded(__func__, {{"codec", codec}}, [&]() -> Status {
    Codec known;
    RINGFOLD_TRY(to_codec(*codec, &known));
    return check(known);
  });
}

ringfold_code ringfold_codec_error_bound(const ringfold_codec* codec, double* bound) {
  return guarded(__func__, {{"codec", codec}, {"bound", bound}}, [&]() -> Status {
    Codec known;
    RINGFOLD_TRY(to_codec(*codec, &known));
    RINGFOLD_TRY(check(known));
    *bound = error_bound(known);
    return {};
  });
}

ringfold_code ringfold_codec_encoded_bytes(const ringfold_codec* codec, uint64_t elems, uint64_t* bytes) {
  return guarded(__func__, {{"codec", codec}, {"bytes", bytes}}, [&]() -> Status {
    Codec known;
    RINGFOLD_TRY(to_codec(*codec, &known));
    RINGFOLD_TRY(check(known));
    *bytes = encoded_bytes(known, elems);
    return {};
  });
}
