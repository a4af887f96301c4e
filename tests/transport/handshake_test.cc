#include "base/handshake.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>
#include <type_traits>

namespace ringfold::base {
namespace {

using Role = Handshake::Role;
using State = Handshake::State;

Key key_of(std::string_view text) { return Key::parse(text).value(); }
const Key& right() {
  static const Key key = key_of("the right key of this job, 32 byte");
  return key;
}
const Key& wrong() {
  static const Key key = key_of("the wrong key of some job, 32 byte");
  return key;
}

size_t feed(Handshake& h, std::string_view bytes) {
  return h.consume(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

// Everything that each side said.
struct Transcript {
  std::string from_initiator, from_acceptor;
};

// Carries bytes between the two until neither has anything to say. `change` sees each side's stream: who said it, the
// bytes before, and the new bytes.
template <typename Change>
Transcript converse(Handshake& initiator, Handshake& acceptor, Change change) {
  Transcript t;
  for (;;) {
    std::string i = initiator.take_output(), a = acceptor.take_output();
    if (i.empty() && a.empty()) return t;
    change(Role::kInitiator, t.from_initiator.size(), i);
    change(Role::kAcceptor, t.from_acceptor.size(), a);
    t.from_initiator += i;
    t.from_acceptor += a;
    feed(acceptor, i);
    feed(initiator, a);
  }
}
Transcript converse(Handshake& initiator, Handshake& acceptor) {
  return converse(initiator, acceptor, [](Role, size_t, std::string&) {});
}

TEST(Handshake, BothSidesWithTheKeyLearnEachOthersHello) {
  for (auto [i_hello, a_hello] : {std::pair<std::string, std::string>{"from rank 3", "from rank 0"},
                                  {"", ""},
                                  {std::string(Handshake::kMaxHello, 'x'), std::string("\0\n", 2)}}) {
    Handshake i(right(), Role::kInitiator, i_hello), a(right(), Role::kAcceptor, a_hello);
    converse(i, a);
    EXPECT_EQ(i.state(), State::kDone) << i.status().to_string();
    EXPECT_EQ(a.state(), State::kDone) << a.status().to_string();
    EXPECT_TRUE(i.status().ok() && a.status().ok());
    EXPECT_EQ(i.peer_hello(), a_hello);
    EXPECT_EQ(a.peer_hello(), i_hello);
  }
}

TEST(Handshake, AnyChunkingOfTheBytesGivesTheSameAndNothingBehindIsEaten) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 200; ++round) {
    Handshake i(right(), Role::kInitiator, "hello of i"), a(right(), Role::kAcceptor, "hello of a");
    std::string to_a, to_i;
    for (int idle = 0; idle < 3;) {
      to_a += i.take_output();
      to_i += a.take_output();
      if (a.state() == State::kPending && i.state() == State::kDone) ADD_FAILURE() << "the initiator is done first";
      idle = to_a.empty() && to_i.empty() ? idle + 1 : 0;
      for (auto [h, bytes] : {std::pair(&a, &to_a), std::pair(&i, &to_i)}) {
        const size_t n = std::min<size_t>(bytes->size(), random() % 9);
        ASSERT_LE(h->wanted(), Handshake::kMaxHello + 64);
        ASSERT_EQ(feed(*h, std::string_view(*bytes).substr(0, n)), n);
        bytes->erase(0, n);
      }
    }
    ASSERT_EQ(i.state(), State::kDone);
    ASSERT_EQ(a.state(), State::kDone);
    EXPECT_EQ(feed(a, "link bytes"), 0u);
    EXPECT_EQ(i.wanted(), 0u);
  }
  Handshake i(right(), Role::kInitiator, "hello"), a(right(), Role::kAcceptor, "");
  feed(a, i.take_output());
  feed(i, a.take_output());
  const std::string last = i.take_output();
  EXPECT_EQ(feed(a, last + "link bytes"), last.size());
  EXPECT_EQ(a.state(), State::kDone);
}

TEST(Handshake, AWrongKeyIsFoundByBothSidesAndNoHelloIsTold) {
  Handshake i(right(), Role::kInitiator, "secret of i"), a(wrong(), Role::kAcceptor, "secret of a");
  const Transcript t = converse(i, a);
  EXPECT_EQ(i.state(), State::kFailed);
  EXPECT_EQ(i.status().code(), Code::kDenied);
  EXPECT_NE(i.status().message().find("does not hold this job's key"), std::string::npos);
  EXPECT_EQ(a.state(), State::kPending);  // it still waits for the proof; the other side has closed
  a.end_of_input();
  EXPECT_EQ(a.status().code(), Code::kDenied);
  EXPECT_EQ((t.from_initiator + t.from_acceptor).find("secret"), std::string::npos);
  EXPECT_TRUE(i.peer_hello().empty() && a.peer_hello().empty());
}

// Somebody without the key who sends what an initiator would send is refused before its hello is looked at.
TEST(Handshake, AnAcceptorRefusesAProofUnderAnotherKey) {
  Handshake a(right(), Role::kAcceptor, "secret"), i(wrong(), Role::kInitiator, "x"),
      accomplice(wrong(), Role::kAcceptor, "");
  const std::string greeting = i.take_output();
  feed(a, greeting);
  const std::string answer = a.take_output();
  feed(accomplice, greeting);
  feed(i, accomplice.take_output());  // makes i say its proof, though between other nonces
  feed(a, i.take_output());
  EXPECT_EQ(a.status().code(), Code::kDenied);
  EXPECT_EQ(a.take_output(), "");
}

TEST(Handshake, WhatASideSaidProvesNothingWhenSentBackToIt) {
  Handshake i(right(), Role::kInitiator, "hello");
  feed(i, i.take_output());
  EXPECT_EQ(i.state(), State::kFailed);
  // The greeting with the role corrected, and the acceptor's own proof sent back to it.
  Handshake first(right(), Role::kInitiator, ""), a(right(), Role::kAcceptor, "");
  feed(a, first.take_output());
  const std::string said = a.take_output();
  feed(a, std::string_view(said).substr(44));
  EXPECT_EQ(a.state(), State::kFailed);
  EXPECT_EQ(a.status().code(), Code::kDenied);
  // Two acceptors played against each other: a's own challenge is answered by another session of the same acceptor.
  Handshake left(right(), Role::kAcceptor, ""), dial(right(), Role::kInitiator, "");
  std::string greeting = dial.take_output();
  feed(left, greeting);
  const std::string left_said = left.take_output();
  Handshake parallel(right(), Role::kAcceptor, "");
  std::string bent = left_said.substr(0, 44);
  bent[10] = greeting[10];  // the acceptor's nonce in an initiator's greeting
  feed(parallel, bent);
  feed(left, std::string_view(parallel.take_output()).substr(44));
  EXPECT_EQ(left.state(), State::kFailed);
}

TEST(Handshake, AReplayedConversationIsRefused) {
  Handshake i(right(), Role::kInitiator, "hello"), a(right(), Role::kAcceptor, "hello");
  const Transcript t = converse(i, a);
  Handshake again_a(right(), Role::kAcceptor, "hello"), again_i(right(), Role::kInitiator, "hello");
  feed(again_a, t.from_initiator);
  EXPECT_EQ(again_a.state(), State::kFailed);
  EXPECT_TRUE(again_a.peer_hello().empty());
  feed(again_i, t.from_acceptor);
  EXPECT_EQ(again_i.state(), State::kFailed);
}

TEST(Handshake, NoncesAreFresh) {
  Handshake one(right(), Role::kInitiator, ""), two(right(), Role::kInitiator, "");
  EXPECT_NE(one.take_output(), two.take_output());
}

// Whoever reads the bit fails; the other side, when it was done before, has at least had only what was authentic.
TEST(Handshake, EverySingleChangedBitIsRefusedByItsReader) {
  size_t bits[2];
  {
    Handshake i(right(), Role::kInitiator, "hello i"), a(right(), Role::kAcceptor, "hello a");
    const Transcript t = converse(i, a);
    bits[0] = 8 * t.from_initiator.size();
    bits[1] = 8 * t.from_acceptor.size();
  }
  for (Role who : {Role::kInitiator, Role::kAcceptor}) {
    for (size_t bit = 0; bit < bits[static_cast<int>(who)]; ++bit) {
      Handshake i(right(), Role::kInitiator, "hello i"), a(right(), Role::kAcceptor, "hello a");
      converse(i, a, [&](Role speaker, size_t before, std::string& bytes) {
        if (speaker == who && bit / 8 >= before && bit / 8 - before < bytes.size()) {
          bytes[bit / 8 - before] ^= static_cast<char>(1 << (bit % 8));
        }
      });
      // A changed nonce of the initiator shows first in the acceptor's proof, which the initiator reads.
      EXPECT_NE(i.state() == State::kDone && a.state() == State::kDone, true) << "bit " << bit;
      EXPECT_TRUE(i.state() == State::kFailed || a.state() == State::kFailed) << "bit " << bit;
      EXPECT_TRUE(i.peer_hello().empty() || i.peer_hello() == "hello a");
      EXPECT_TRUE(a.peer_hello().empty() || a.peer_hello() == "hello i");
    }
  }
}

TEST(Handshake, ATruncatedConversationStaysPendingUntilItsEndAndThenFailsInWords) {
  for (size_t cut = 0;; ++cut) {
    Handshake i(right(), Role::kInitiator, "hello"), a(right(), Role::kAcceptor, "hello");
    const Transcript t = converse(i, a, [&](Role speaker, size_t before, std::string& bytes) {
      if (speaker == Role::kInitiator && before + bytes.size() > cut) bytes.resize(cut - std::min(cut, before));
    });
    if (a.state() == State::kDone) {
      EXPECT_EQ(cut, t.from_initiator.size());
      break;
    }
    ASSERT_EQ(a.state(), State::kPending) << cut;
    a.end_of_input();
    ASSERT_EQ(a.state(), State::kFailed);
    EXPECT_FALSE(a.status().message().empty());
    EXPECT_TRUE(a.peer_hello().empty());
    ASSERT_LT(cut, 1000u);
  }
}

TEST(Handshake, GarbageIsRefusedAtOnceAndQuotedSafely) {
  Handshake web(right(), Role::kAcceptor, "");
  const std::string request = "GET / HTTP/1.1\r\n\r\n";
  EXPECT_LT(feed(web, request), request.size());
  EXPECT_EQ(web.status().code(), Code::kProtocol);
  EXPECT_NE(web.status().message().find("not a Ringfold peer"), std::string::npos);
  EXPECT_NE(web.status().message().find("GET / HTTP"), std::string::npos);
  EXPECT_EQ(web.take_output(), "") << "a stranger is not answered";
  std::mt19937_64 random(6);
  for (int round = 0; round < 500; ++round) {
    Handshake h(right(), round % 2 ? Role::kAcceptor : Role::kInitiator, "hello");
    std::string garbage(200, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    if (round % 4 >= 2) {  // gets past the head
      Handshake other(wrong(), round % 2 ? Role::kInitiator : Role::kAcceptor, "");
      Handshake dial(wrong(), Role::kInitiator, "");
      if (round % 2 == 0) feed(other, dial.take_output());
      garbage.replace(0, 12, other.take_output().substr(0, 12));
    }
    feed(h, garbage);
    ASSERT_EQ(h.state(), State::kFailed);
    for (char c : h.status().message()) ASSERT_TRUE(c >= 32 && c < 127);
  }
}

TEST(Handshake, AnotherVersionIsNamedOnBothSides) {
  Handshake i(right(), Role::kInitiator, ""), a(right(), Role::kAcceptor, "");
  std::string greeting = i.take_output();
  greeting[8] = 7;
  feed(a, greeting);
  EXPECT_EQ(a.state(), State::kFailed);
  EXPECT_NE(a.status().message().find("version 7"), std::string::npos);
  EXPECT_NE(a.status().message().find(fmt::format("version {}", Handshake::kVersion)), std::string::npos);
  std::string answer = a.take_output();  // so that the other side can say it, too
  ASSERT_EQ(answer.size(), 12u);
  answer[8] = 9;
  feed(i, answer);
  EXPECT_NE(i.status().message().find("version 9"), std::string::npos);
}

TEST(Handshake, AHelloOverTheLimitFailsWhereItIsMade) {
  Handshake h(right(), Role::kInitiator, std::string(Handshake::kMaxHello + 1, 'x'));
  EXPECT_EQ(h.state(), State::kFailed);
  EXPECT_EQ(h.status().code(), Code::kInvalid);
  EXPECT_EQ(h.take_output(), "");
  EXPECT_EQ(feed(h, "RINGFOLD"), 0u);
}

// ---- keys ----

class KeyFile : public testing::Test {
 protected:
  void SetUp() override {
    const std::string name = testing::TempDir() + "ringfold_key_XXXXXX";
    std::copy(name.begin(), name.end(), directory_);
    ASSERT_NE(::mkdtemp(directory_), nullptr);
    path_ = std::string(directory_) + "/key";
  }
  void TearDown() override {
    std::remove(path_.c_str());
    ::rmdir(directory_);
  }
  void write(std::string_view text, mode_t mode) {
    std::ofstream(path_) << text;
    ASSERT_EQ(::chmod(path_.c_str(), mode), 0);
  }
  char directory_[256] = {};
  std::string path_;
};

TEST_F(KeyFile, ASavedKeyIsPrivateAndLoadsAsTheSame) {
  const Key key = Key::generate().value();
  EXPECT_EQ(key.text().size(), 64u);
  EXPECT_NE(key.text(), Key::generate().value().text());
  ASSERT_TRUE(key.save(path_).ok());
  struct stat st {};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  EXPECT_FALSE(key.save(path_).ok()) << "an existing file is left alone";
  auto loaded = Key::load(path_);
  ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
  EXPECT_EQ(loaded->text(), key.text());
}

TEST_F(KeyFile, OneThatOthersMayReadOrWriteIsRefusedWithTheRemedy) {
  for (mode_t mode : {0640, 0604, 0620, 0602, 0610}) {
    write("0123456789abcdef", mode);
    auto key = Key::load(path_);
    ASSERT_FALSE(key.ok());
    EXPECT_EQ(key.status().code(), Code::kDenied);
    EXPECT_NE(key.status().message().find("chmod 600"), std::string::npos);
    EXPECT_EQ(key.status().message().find("0123456789abcdef"), std::string::npos) << "a key is never printed";
  }
}

TEST_F(KeyFile, ItsLengthIsCheckedWithoutTheWhiteSpaceAtItsEnd) {
  for (auto [text, good] : {std::pair<std::string, bool>{"0123456789abcdef\n", true},
                            {"0123456789abcde\n \n", false},
                            {"", false},
                            {std::string(Key::kMaxBytes, 'k') + "\n", true},
                            {std::string(Key::kMaxBytes + 1, 'k'), false}}) {
    write(text, 0600);
    EXPECT_EQ(Key::load(path_).ok(), good) << text.size();
  }
  EXPECT_FALSE(Key::load(path_ + ".missing").ok());
  EXPECT_FALSE(Key::load(directory_).ok()) << "a directory is not a key file";
}

TEST(KeyType, CannotBePrinted) {
  EXPECT_FALSE(fmt::is_formattable<Key>::value);
  EXPECT_FALSE((std::is_convertible_v<Key, std::string_view>));
}

}  // namespace
}  // namespace ringfold::base
