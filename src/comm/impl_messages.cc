// The messages of a communicator: sends and receives, of values or of codes.
#include <fmt/format.h>

#include <algorithm>

#include "comm/impl.h"
#include "kernels/codec.h"

namespace ringfold {

Work Communicator::Impl::message(bool send, void* data, size_t count, DataType type, int peer, int64_t tag,
                                 const CallOptions& options) {
  if (may_be_staged(options)) {
    if (auto work = stage_message(send, data, count, type, peer, tag, options)) return *std::move(work);
  }
  return message_on_host(send, data, count, type, peer, tag, options);
}

Work Communicator::Impl::message_on_host(bool send, void* data, size_t count, DataType type, int peer, int64_t tag,
                                         const CallOptions& options) {
  const char* name = send ? "send" : "recv";
  auto bad = [&](std::string text) { return Work(Status(Code::kInvalid, fmt::format("{}: {}", name, text))); };
  if (static_cast<int>(type) >= kDataTypes) return bad(fmt::format("{} is no data type", static_cast<int>(type)));
  if (peer >= size() || peer < (send ? 0 : kAnySource))
    return bad(fmt::format("peer {} is not a rank of 0..{}", peer, size() - 1));
  if (count > 0 && data == nullptr) return bad("data is null");
  if (count > (uint64_t{1} << 60)) return bad("the count exceeds the address space");
  if (options.codec && *options.codec) return coded_message(send, data, count, type, peer, tag, options);
  exec::Transfer transfer{
      .send = send, .peer = peer, .tag = tag, .format = {.type = type}, .bytes = count * size_of(type)};
  if (send) {
    transfer.source = static_cast<const std::byte*>(data);
  } else {
    transfer.target = static_cast<std::byte*>(data);
  }
  exec::Engine::Hold hold(engine());
  if (engine().attempt(hold, *domain_, &transfer)) return WorkAccess::done(send ? -1 : peer);
  exec::Message* message = domain_->take_message().release();
  static_cast<exec::Transfer&>(*message) = transfer;
  message->deadline = deadline(options);
  message->label = options.label;
  Work work = WorkAccess::make(message);
  engine().start(hold, *domain_, message);
  return work;
}

// A message that travels as a code: encoded to memory of ours before it is sent, and decoded from there when it has
// come.
Work Communicator::Impl::coded_message(bool send, void* data, size_t count, DataType type, int peer, int64_t tag,
                                       const CallOptions& options) {
  const Codec codec = *options.codec;
  if (Status s = ringfold::check(codec); !s.ok()) return Work(s);
  if (codec.when_faster) {
    return Work(Status(Code::kInvalid, fmt::format("{}: {} is for collectives; a message is encoded or it is not",
                                                   send ? "send" : "recv", to_string(codec))));
  }
  if (type != DataType::kF32) {
    return Work(Status(Code::kInvalid, fmt::format("{}: codec {} is for f32, not {}", send ? "send" : "recv",
                                                   to_string(codec), name_of(type))));
  }
  const uint64_t bytes = encoded_bytes(codec, count);
  auto memory = spare_->take(std::max<uint64_t>(bytes, 1));
  if (!memory.ok()) return Work(memory.status());
  std::shared_ptr<std::byte[]> code = *std::move(memory);
  auto* values = static_cast<float*>(data);
  const auto kernels = kernels::find_cpu_codec(codec);
  exec::Transfer transfer{
      .send = send,
      .peer = peer,
      .tag = tag,
      .format = {type, codec.kind, codec.rotate, static_cast<uint32_t>(count & exec::Format::kMostCount)},
      .bytes = bytes};
  if (send) {
    kernels.encode(codec, values, count, code.get(),
                   {.key = draw_key() ^ (uint64_t{1} << 31) ^ draws_.fetch_add(1), .first = 0});
    transfer.source = code.get();
  } else {
    transfer.target = code.get();
  }
  exec::Engine::Hold hold(engine());
  exec::Message* message = domain_->take_message().release();
  static_cast<exec::Transfer&>(*message) = transfer;
  message->deadline = deadline(options);
  message->label = options.label;
  if (!send) message->decode = [=] { kernels.decode(codec, code.get(), count, values); };
  Work work = WorkAccess::make(message);
  engine().start(hold, *domain_, message);
  hold.release();
  work.then([code = std::move(code)](const Status&) {});  // the memory outlives the call
  return work;
}

}  // namespace ringfold
