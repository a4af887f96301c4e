// How two processes of one job prove to each other that they hold the job's key, before either reads anything else of
// the other. Pure: bytes in, bytes out, no sockets and no clock, so the same machine serves TCP links, the bootstrap
// and tests that flip every bit. The caller owes a deadline; the handshake itself waits for ever.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ringfold/status.h"

namespace ringfold::base {

// The secret that all processes of one job share: printable text of at least 16 bytes. Copies share the one place in
// memory that holds it, which is wiped with the last copy. There is no way to stream or format a Key; text() is for
// handing it to a process that this one starts, never for a log line or a command line. Immutable: any thread.
class Key {
 public:
  static constexpr size_t kMinBytes = 16;
  static constexpr size_t kMaxBytes = 4096;

  // 256 fresh random bits, as hexadecimal text.
  static Result<Key> generate();
  // The text without white space at its end.
  static Result<Key> parse(std::string_view text);
  // The contents of a file. Refused when anybody but its owner may read or write it, or when its owner is neither
  // this user nor root.
  static Result<Key> load(const std::string& path);
  // Writes a new file with mode 0600; fails when something of that name exists.
  Status save(const std::string& path) const;
  std::string_view text() const;

 private:
  struct Secret;
  explicit Key(std::shared_ptr<const Secret> secret) : secret_(std::move(secret)) {}
  std::shared_ptr<const Secret> secret_;
};

// One side of one handshake. Use:
//   send take_output(); while pending: read bytes, consume() them, send take_output() again.
// After kDone both sides know that the other holds the key and have its hello, unchanged. Bytes that follow the
// handshake in the stream are never eaten. After kFailed: send what take_output() still gives (it tells the peer
// which version this side speaks), then close. Movable, one thread at a time.
class Handshake {
 public:
  enum class Role : uint8_t { kInitiator, kAcceptor };
  enum class State : uint8_t { kPending, kDone, kFailed };
  static constexpr uint16_t kVersion = 1;
  static constexpr size_t kMaxHello = 4096;

  // `hello` is told to the peer once it has proved the key. Longer than kMaxHello: fails at once, kInvalid.
  Handshake(const Key& key, Role role, std::string hello);

  // What is to be sent now; empties the buffer.
  std::string take_output();
  // Reads the peer's bytes and returns how many belong to the handshake: all, unless it ended inside them.
  size_t consume(std::span<const std::byte> bytes);
  // How many bytes the peer's present message still lacks: an upper bound for a read that must not go past it.
  size_t wanted() const { return state_ == State::kPending ? target_ - input_.size() : 0; }
  // The connection ended: a pending handshake fails, and status() says what that most likely means.
  void end_of_input();

  State state() const { return state_; }
  const Status& status() const { return status_; }
  const std::string& peer_hello() const { return peer_hello_; }  // "" before kDone

 private:
  enum class Stage : uint8_t { kHead, kNonce, kProof, kHello };
  static constexpr size_t kHeadBytes = 12, kNonceBytes = 32, kMacBytes = 32;
  using Mac = std::array<unsigned char, kMacBytes>;

  void step();
  void read_head();
  void read_nonce();
  void read_proof();
  void read_hello();
  void expect(Stage stage, size_t bytes);
  void fail(Code code, std::string message);
  std::string head() const;
  std::string signed_with(Role who, std::string_view purpose, std::string_view message);
  bool verify(std::string_view purpose, std::string_view message, std::string_view proof);
  Role other() const { return role_ == Role::kInitiator ? Role::kAcceptor : Role::kInitiator; }

  Key key_;
  Role role_;
  std::string hello_, greeting_, peer_greeting_, peer_hello_;
  std::string input_, output_;
  Mac session_{};
  State state_ = State::kPending;
  Stage stage_ = Stage::kHead;
  size_t target_ = kHeadBytes;  // bytes of the stage that is being read
  Status status_;
};

}  // namespace ringfold::base
