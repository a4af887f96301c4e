// Train, export, predict, serve: the real programs, started as their users do, and asked over HTTP by plain sockets,
// so that also what no client library would send is sent.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

using Json = nlohmann::json;

const char* const kFashion = "/usr/share/datasets/fashion-mnist";
const char* const kKey = "a key of more than sixteen bytes";

std::string tool(const char* variable) { return std::getenv(variable); }

Outcome run_model(Words arguments) {
  arguments.insert(arguments.begin(), tool("RINGFOLD_MODEL_PROGRAM"));
  return Command(arguments).wait(100);
}

std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::string some_text() {
  std::string text;
  for (int i = 0; text.size() < 6000; ++i) text += "the ring folds what rank " + std::to_string(i % 7) + " sends\n";
  return text;
}

// Models of both kinds, trained and exported once for all tests.
struct Models {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(), 0600);
  std::string images_log = folder.path() + "/images.json";
  Outcome text_trained, text_exported, images_trained, images_exported;
  std::string of_text = folder.path() + "/text.pt", of_images = folder.path() + "/images.pt";

  Models() {
    const auto train = [&](Words words, const std::string& name) {
      words.insert(words.begin(), tool("RINGFOLD_TRAIN_PROGRAM"));
      words.insert(words.end(), {"--epochs", "2", "--save", folder.path() + "/" + name});
      return Command(words).wait(150);
    };
    text_trained = train({"--model", "transformer", "--data", text, "--layers", "1", "--width", "32", "--heads", "2",
                          "--context", "32", "--batch", "8", "--lr", "0.01"},
                         "text.rf");
    text_exported = run_model({"export", folder.path() + "/text.rf", of_text});
    if (!std::filesystem::exists(kFashion)) return;
    images_trained = train({"--model", "mlp", "--limit-samples", "3000", "--json", images_log}, "images.rf");
    images_exported = run_model({"export", folder.path() + "/images.rf", of_images});
  }
};

class Deployment : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ::signal(SIGPIPE, SIG_IGN);  // a server that refuses may close before all is sent
    models_ = std::make_unique<Models>();
  }
  static void TearDownTestSuite() { models_.reset(); }
  void SetUp() override {
    ASSERT_EQ(models_->text_trained.status, 0) << models_->text_trained.err;
    ASSERT_EQ(models_->text_exported.status, 0) << models_->text_exported.err;
  }
  static std::unique_ptr<Models> models_;
};
std::unique_ptr<Models> Deployment::models_;

class WithImages : public Deployment {
 protected:
  void SetUp() override {
    Deployment::SetUp();
    if (!std::filesystem::exists(kFashion)) GTEST_SKIP() << kFashion << " is missing: install dataset-fashion-mnist";
    ASSERT_EQ(models_->images_trained.status, 0) << models_->images_trained.err;
    ASSERT_EQ(models_->images_exported.status, 0) << models_->images_exported.err;
  }
};

// ---- export and predict ----

TEST_F(WithImages, PredictionsOfTheTestSetAreRightAsOftenAsTheCardSays) {
  const auto outcome = run_model(
      {"predict", "--json", "--model", models_->of_images, std::string(kFashion) + "/t10k-images-idx3-ubyte.gz"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const auto lines = json_lines(outcome.out);
  ASSERT_EQ(lines.size(), 10000U);
  const Folder unpacked;
  const std::string labels_file = unpacked.path() + "/labels";
  ASSERT_EQ(
      std::system(("gunzip -c " + std::string(kFashion) + "/t10k-labels-idx1-ubyte.gz >" + labels_file).c_str()), 0);
  const std::string labels = read_file(labels_file).substr(8);
  int right = 0;  // of the 3000 that training tested with
  for (size_t i = 0; i < 3000; ++i) {
    EXPECT_EQ(lines[i]["index"], i);
    right += lines[i]["class"] == static_cast<int>(labels[i]);
  }
  const auto end = json_lines(read_file(models_->images_log)).back();
  EXPECT_GT(end["test_accuracy"], 0.7);
  EXPECT_NEAR(right / 3000.0, end["test_accuracy"].get<double>(), 0.5 / 3000);
  char percent[16];
  std::snprintf(percent, sizeof percent, "%.2f %%", right / 30.0);
  EXPECT_NE(read_file(models_->folder.path() + "/images.card.md").find(percent), std::string::npos) << percent;
}

TEST_F(Deployment, TheCardHasTheDigestThatSha256sumPrints) {
  const auto digest = Command({"sha256sum", models_->of_text}).wait().out.substr(0, 64);
  ASSERT_EQ(digest.size(), 64U);
  EXPECT_NE(read_file(models_->folder.path() + "/text.card.md").find(digest), std::string::npos);
  EXPECT_NE(models_->text_exported.out.find(digest), std::string::npos);
  EXPECT_EQ(run_model({"predict", "--digest", digest, "--model", models_->of_text, models_->text}).status, 0);
  const auto refused =
      run_model({"predict", "--digest", std::string(64, '0'), "--model", models_->of_text, models_->text});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find(digest), std::string::npos) << refused.err;
}

TEST_F(Deployment, TextIsScoredAndContinued) {
  const auto outcome = run_model({"predict", "--json", "--bytes", "40", "--model", models_->of_text, models_->text});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const Json line = json_lines(outcome.out).at(0);
  EXPECT_LT(line["bits_per_byte"], 3.0) << "it has learned something of its own text";
  EXPECT_EQ(line["text"].get<std::string>().size(), 40U) << line;
  const auto again = run_model({"predict", "--json", "--bytes", "40", "--model", models_->of_text, models_->text});
  EXPECT_EQ(again.out, outcome.out);
}

TEST_F(WithImages, AnImageInPgmIsTheSameAsInIdx) {
  std::string idx("\0\0\x08\x03\0\0\0\x01\0\0\0\x1c\0\0\0\x1c", 16), pgm = "P5\n# drawn by hand\n28 28\n255\n",
                                                                     pixels;
  for (int i = 0; i < 784; ++i) pixels += static_cast<char>(i * 37 % 256);
  const Folder folder;
  const auto a = folder.write("a.idx", idx + pixels, 0600), b = folder.write("b.pgm", pgm + pixels, 0600);
  const auto outcome = run_model({"predict", "--json", "--model", models_->of_images, a, b});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const auto lines = json_lines(outcome.out);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["probabilities"], lines[1]["probabilities"]);
  double sum = 0;
  for (const double p : lines[0]["probabilities"]) sum += p;
  EXPECT_NEAR(sum, 1, 1e-5);
  const std::pair<std::string, const char*> bad[] = {{"P5 27 28 255\n" + pixels, "27 x 28"},
                                                     {"P5 28 28 65535\n" + pixels, "largest value"},
                                                     {"P5 28 28 255\n" + pixels.substr(1), "783"},
                                                     {"P5 28 28 100\n" + pixels, "largest value"},
                                                     {"P5", "no image"},
                                                     {"P5 # without end", "no image"},
                                                     {"GIF89a", "0x47494638"},
                                                     {"", ""}};
  for (const auto& [bytes, word] : bad) {
    const auto refused = run_model({"predict", "--model", models_->of_images, folder.write("bad", bytes, 0600)});
    EXPECT_EQ(refused.status, 1) << bytes.substr(0, 20);
    EXPECT_NE(refused.err.find("/bad"), std::string::npos) << refused.err;
    EXPECT_NE(refused.err.find(word), std::string::npos) << refused.err;
  }
}

TEST_F(WithImages, PythonLoadsTheExportedFileAndFindsTheSame) {
  const std::string python = "/usr/bin/python3";
  if (Command({python, "-c", "import torch"}).wait(60).status != 0)
    GTEST_SKIP() << python << " has no torch (python3-torch)";
  const Folder folder;
  std::string pgm = "P5 28 28 255\n";
  for (int i = 0; i < 784; ++i) pgm += static_cast<char>(i * 37 % 256);
  const auto image = folder.write("image.pgm", pgm, 0600);
  const std::string script =
      "import sys, json, torch\n"
      "images, text = torch.jit.load(sys.argv[1]), torch.jit.load(sys.argv[2])\n"
      "x = (torch.arange(784) * 37 % 256).to(torch.uint8).view(1, 1, 28, 28)\n"
      "print(json.dumps(torch.softmax(images(x), 1)[0].tolist()))\n"
      "x, out = list(open(sys.argv[3], 'rb').read()), []\n"
      "for _ in range(30):\n"
      "    out.append(int(text(torch.tensor([(x + out)[-32:]]))[0, -1].argmax()))\n"
      "print(json.dumps(bytes(out).decode('utf-8', 'replace')))\n";
  const auto python_says =
      Command({python, "-c", script, models_->of_images, models_->of_text, models_->text}).wait(60);
  ASSERT_EQ(python_says.status, 0) << python_says.err;
  const auto expected = json_lines(python_says.out);
  const auto ours = json_lines(run_model({"predict", "--json", "--model", models_->of_images, image}).out).at(0);
  for (size_t c = 0; c < 10; ++c)
    EXPECT_NEAR(ours["probabilities"][c].get<double>(), expected.at(0)[c].get<double>(), 1e-5);
  const auto text =
      json_lines(run_model({"predict", "--json", "--bytes", "30", "--model", models_->of_text, models_->text}).out)
          .at(0);
  EXPECT_EQ(text["text"], expected.at(1));
}

TEST_F(Deployment, WhatIsWrongWithTheCommandLineOrAFileIsSaid) {
  EXPECT_EQ(run_model({}).status, 2);
  EXPECT_EQ(run_model({"serve"}).status, 2);
  EXPECT_EQ(run_model({"export", "only-one"}).status, 2);
  const std::pair<Words, std::string> bad[] = {
      {{"export", "/nowhere", "/tmp/x.pt"}, "/nowhere"},
      {{"predict", "--model", "/nowhere", models_->text}, "/nowhere"},
      {{"predict", "--model", models_->text, models_->text}, "ringfold export"},
      {{"predict", "--model", models_->of_text, "/nowhere"}, "/nowhere"},
      {{"serve", "--model", models_->of_text, "--address", "here"}, "no port"},
      {{"serve", "--model", models_->of_text, "--address", "example.org:80"}, "numeric"},
      {{"serve", "--model", models_->of_text, "--address", "127.0.0.1:99999"}, "65535"},
      {{"serve", "--model", models_->of_text, "--address", "0.0.0.0:0"}, "--key-file"},
      {{"serve", "--model", models_->of_text, "--address", "[::]:0"}, "--key-file"},
      {{"serve", "--model", models_->of_text, "--key-file", "/nowhere"}, "/nowhere"},
      {{"serve", "--model", models_->of_text, "--key-file", models_->folder.write("short", "short", 0600)},
       "16 bytes"},
      {{"serve", "--model", models_->of_text, "--key-file", models_->folder.write("shared", kKey, 0644)},
       "chmod 600"},
  };
  for (const auto& [words, part] : bad) {
    const auto outcome = run_model(words);
    EXPECT_EQ(outcome.status, 1) << words.back();
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
}

// ---- serve ----

struct Answer {
  int status = 0;  // 0: the connection ended without an answer
  std::string head, body;
  Json json() const { return Json::parse(body); }
};

// One connection. What it waits for ends after 20 seconds.
class Client {
 public:
  explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { ::close(fd_); }
  bool connected() const { return connected_; }
  bool send(const std::string& bytes) const {
    return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  void half_close() const { ::shutdown(fd_, SHUT_WR); }

  // The next answer on this connection.
  Answer read() {
    Answer answer;
    size_t end = std::string::npos;
    while ((end = bytes_.find("\r\n\r\n")) == std::string::npos) {
      if (!more()) return answer;
    }
    answer.head = bytes_.substr(0, end + 4);
    answer.status = std::atoi(answer.head.c_str() + sizeof "HTTP/1.1");
    const size_t length = answer.head.find("Content-Length: ");
    const size_t body = length == std::string::npos ? 0 : std::stoul(answer.head.substr(length + 16));
    while (bytes_.size() < end + 4 + body) {
      if (!more()) return {};
    }
    answer.body = bytes_.substr(end + 4, body);
    bytes_.erase(0, end + 4 + body);
    return answer;
  }
  bool ended() { return bytes_.empty() && !more(); }

 private:
  bool more() {
    pollfd poll{fd_, POLLIN, 0};
    char piece[4096];
    if (::poll(&poll, 1, 20000) != 1) return false;
    const ssize_t got = ::recv(fd_, piece, sizeof piece, 0);
    if (got > 0) bytes_.append(piece, static_cast<size_t>(got));
    return got > 0;
  }
  int fd_;
  bool connected_ = false;
  std::string bytes_;
};

class Serving : public Deployment {
 protected:
  // Starts the program; port() is where.
  void serve(const std::string& model, Words more = {}) {
    Words words = {tool("RINGFOLD_MODEL_PROGRAM"), "serve", "--model", model, "--address", "127.0.0.1:0"};
    words.insert(words.end(), more.begin(), more.end());
    server_.emplace(words);
    const std::string url = "http://127.0.0.1:";
    ASSERT_TRUE(server_->wait_for(url, 1, 60) && server_->wait_for("\n")) << server_->wait(1).err;
    port_ = std::stoi(server_->output().substr(server_->output().find(url) + url.size()));
  }
  int port() const { return port_; }

  static std::string post(const std::string& body, const std::string& header = "") {
    return "POST /predict HTTP/1.1\r\nHost: x\r\n" + header + "Content-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body;
  }
  static std::string get(const std::string& target, const std::string& header = "") {
    return "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n";
  }
  Answer ask(const std::string& request) const {
    Client client(port_);
    client.send(request);
    return client.read();
  }
  void expect_error(const std::string& request, int status, const std::string& word) const {
    const Answer answer = ask(request);
    EXPECT_EQ(answer.status, status) << request.substr(0, 200) << "\n" << answer.body;
    if (answer.status == 0) return;
    EXPECT_NE(answer.json()["error"].get<std::string>().find(word), std::string::npos) << answer.body;
    EXPECT_NE(answer.head.find("application/json"), std::string::npos) << answer.head;
  }
  // It lives, and nothing that came before spoiled it.
  void expect_well() const { EXPECT_EQ(ask(get("/health")).json()["status"], "ok"); }

  std::optional<Command> server_;

 private:
  int port_ = 0;
};

TEST_F(Serving, AnswersOverOneConnectionAsPredictDoes) {
  serve(models_->of_text);
  Client client(port());
  ASSERT_TRUE(client.send(get("/health")));
  EXPECT_EQ(client.read().json()["status"], "ok");
  ASSERT_TRUE(client.send(get("/model")));
  const Json model = client.read().json();
  EXPECT_EQ(model["model"]["kind"], "transformer");
  EXPECT_NE(models_->text_exported.out.find(model["sha256"].get<std::string>()), std::string::npos) << model;
  const std::string prompt = some_text();
  ASSERT_TRUE(client.send(post(Json{{"text", prompt}, {"bytes", 40}}.dump(), "Content-Type: application/json\r\n")));
  const Answer answer = client.read();
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto on_file = run_model({"predict", "--json", "--bytes", "40", "--model", models_->of_text, models_->text});
  EXPECT_EQ(answer.json()["text"], json_lines(on_file.out).at(0)["text"]);
  const auto drawn = [&](int seed) {
    return ask(post(Json{{"text", "the "}, {"bytes", 30}, {"temperature", 1.0}, {"seed", seed}}.dump())).body;
  };
  EXPECT_EQ(drawn(1), drawn(1));
  EXPECT_NE(drawn(1), drawn(2));
  // Two requests at once on one connection are answered in turn.
  ASSERT_TRUE(client.send(get("/health") + get("/nothing")));
  EXPECT_EQ(client.read().status, 200);
  EXPECT_EQ(client.read().status, 404);
  ASSERT_TRUE(client.send(get("/health", "Connection: close\r\n")));
  EXPECT_EQ(client.read().status, 200);
  EXPECT_TRUE(client.ended());
}

TEST_F(Serving, RefusesWhatItDoesNotUnderstandAndGoesOn) {
  serve(models_->of_text, {"--max-body", "1000"});
  expect_error("nonsense\r\n\r\n", 400, "no HTTP request");
  expect_error(std::string("\0\x16\x03\x01", 4) + "\r\n\r\n", 400, "no HTTP request");
  expect_error("GET /health HTTP/9.9\r\n\r\n", 400, "no HTTP request");
  expect_error("POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400, "no HTTP request");
  expect_error(get("/health", "X: " + std::string(9000, 'x') + "\r\n"), 431, "8192");
  expect_error(get("/nothing"), 404, "/predict");
  expect_error(get("/predict"), 405, "POST");
  expect_error("DELETE /model HTTP/1.1\r\nHost: x\r\n\r\n", 405, "GET");
  EXPECT_NE(ask(get("/predict")).head.find("Allow: POST"), std::string::npos);
  expect_error(post("{}", "Content-Type: text/plain\r\n"), 415, "application/json");
  expect_error(post("{}", "Expect: miracles\r\n"), 417, "100-continue");
  expect_error(post(std::string(1001, ' ')), 413, "1000");
  expect_error("POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
                   std::string(2000, ' ') + "\r\n0\r\n\r\n",
               413, "1000");
  expect_error(post(""), 400, "JSON");
  expect_error(post("{\"text\": "), 400, "JSON");
  expect_error(post(std::string(900, '[')), 400, "JSON");
  expect_error(post("[]"), 400, "\"text\"");
  expect_error(post("{\"images\": []}"), 400, "\"text\"");
  expect_error(post("{\"text\": 5}"), 400, "no string");
  expect_error(post("{\"text\": \"\"}"), 400, "at least one byte");
  expect_error(post("{\"text\": \"a\", \"byte\": 5}"), 400, "\"byte\"");
  expect_error(post("{\"text\": \"a\", \"bytes\": 0}"), 400, "\"bytes\"");
  expect_error(post("{\"text\": \"a\", \"bytes\": 5000}"), 400, "4096");
  expect_error(post("{\"text\": \"a\", \"bytes\": 1.5}"), 400, "\"bytes\"");
  expect_error(post("{\"text\": \"a\", \"temperature\": -1}"), 400, "temperature");
  expect_error(post("{\"text\": \"a\", \"temperature\": \"hot\"}"), 400, "temperature");
  expect_error(post("{\"text\": \"a\", \"seed\": -1}"), 400, "seed");
  expect_error(post("{\"text\": \"\xff\"}"), 400, "JSON");
  Client gone(port());  // half a request, then nothing more ever
  ASSERT_TRUE(gone.send("POST /predict HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"));
  gone.half_close();
  EXPECT_EQ(gone.read().status, 400);
  expect_well();
  EXPECT_EQ(ask(post("{\"text\": \"a\"}")).status, 200);
}

TEST_F(Serving, ABodyThatIsTooLargeIsRefusedBeforeItIsSent) {
  serve(models_->of_text, {"--max-body", "1000"});
  const std::string head = "POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: ";
  Client large(port());
  ASSERT_TRUE(large.send(head + "2000000000\r\n\r\n"));
  EXPECT_EQ(large.read().status, 413);
  EXPECT_TRUE(large.ended()) << "the next bytes could be those of the body";
  Client right(port());
  const std::string body = "{\"text\": \"a\"}";
  ASSERT_TRUE(right.send(head + std::to_string(body.size()) + "\r\n\r\n"));
  EXPECT_EQ(right.read().status, 100);
  ASSERT_TRUE(right.send(body));
  EXPECT_EQ(right.read().status, 200);
}

TEST_F(Serving, AnswersOnlyWithTheKeyWhenItHasOne) {
  serve(models_->of_text, {"--key-file", models_->folder.write("key", std::string(kKey) + "\n", 0600)});
  const std::string good = "Authorization: Bearer " + std::string(kKey) + "\r\n";
  EXPECT_EQ(ask(get("/health", good)).status, 200);
  EXPECT_EQ(ask(post("{\"text\": \"a\"}", good)).status, 200);
  for (const std::string& header :
       {std::string(), "Authorization: " + std::string(kKey) + "\r\n",
        std::string("Authorization: Bearer a key of more than sixteen bytez\r\n"),
        std::string("Authorization: Bearer a key\r\n"), std::string("Authorization: Bearer\r\n")}) {
    expect_error(get("/health", header), 401, "key");
    expect_error(post("no JSON at all", header), 401, "key");
    expect_error(get("/nothing", header), 401, "key");
  }
  EXPECT_NE(ask(get("/model")).head.find("WWW-Authenticate: Bearer"), std::string::npos);
}

TEST_F(Serving, SlowClientsLoseTheirConnectionAndDelayNobody) {
  serve(models_->of_text, {"--timeout", "1", "--connections", "8"});
  Client silent(port()), header(port()), body(port());
  ASSERT_TRUE(header.send("GET /hea"));
  ASSERT_TRUE(body.send("POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"));
  std::thread drip([&] {  // a byte now and then buys no time
    for (int i = 0; i < 60 && body.send(" "); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  });
  expect_well();
  EXPECT_EQ(ask(post("{\"text\": \"a\"}")).status, 200);
  const Answer late_header = header.read(), late_body = body.read();
  EXPECT_EQ(late_header.status, 408);
  EXPECT_EQ(late_body.status, 408) << late_body.body;
  EXPECT_TRUE(silent.ended()) << "who asked nothing is told nothing";
  EXPECT_TRUE(body.ended());
  drip.join();
  expect_well();
}

TEST_F(Serving, TooManyConnectionsAreToldSo) {
  serve(models_->of_text, {"--connections", "3"});
  std::vector<std::unique_ptr<Client>> open;
  for (int i = 0; i < 3; ++i) {
    open.push_back(std::make_unique<Client>(port()));
    ASSERT_TRUE(open.back()->send(get("/health")));
    ASSERT_EQ(open.back()->read().status, 200);
  }
  Client fourth(port());
  EXPECT_EQ(fourth.read().status, 503);
  open.clear();
  for (int tries = 0; tries < 100; ++tries) {  // until the server has seen that they are gone
    if (ask(get("/health")).status == 200) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  FAIL() << "no connection became free";
}

TEST_F(Serving, SigtermEndsItAlsoWhileItAnswers) {
  serve(models_->of_text);
  Client idle(port()), busy(port());
  ASSERT_TRUE(idle.send(get("/health")));
  ASSERT_EQ(idle.read().status, 200);
  ASSERT_TRUE(busy.send(post("{\"text\": \"a\", \"bytes\": 4096}")));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  server_->signal(SIGTERM);
  const Answer answer = busy.read();
  EXPECT_TRUE(answer.status == 503 || answer.status == 200) << answer.body;  // 200: it was quicker
  EXPECT_TRUE(idle.ended());
  const auto outcome = server_->wait(20);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("asked to stop"), std::string::npos);
  EXPECT_FALSE(Client(port()).connected());
}

class ServingImages : public Serving {
 protected:
  void SetUp() override {
    Deployment::SetUp();
    if (!std::filesystem::exists(kFashion)) GTEST_SKIP() << kFashion << " is missing: install dataset-fashion-mnist";
    ASSERT_EQ(models_->images_exported.status, 0) << models_->images_exported.err;
  }
};

TEST_F(ServingImages, ClassifiesAsPredictDoesFlatOrByRows) {
  serve(models_->of_images);
  Json flat = Json::array(), rows = Json::array();
  std::string pgm = "P5 28 28 255\n";
  for (int i = 0; i < 784; ++i) {
    flat.push_back(i * 37 % 256);
    if (i % 28 == 0) rows.push_back(Json::array());
    rows.back().push_back(i * 37 % 256);
    pgm += static_cast<char>(i * 37 % 256);
  }
  const Answer answer = ask(post(Json{{"images", {flat, rows}}}.dump()));
  ASSERT_EQ(answer.status, 200) << answer.body;
  const Json predictions = answer.json()["predictions"];
  ASSERT_EQ(predictions.size(), 2U);
  EXPECT_EQ(predictions[0], predictions[1]);
  const auto on_file =
      run_model({"predict", "--json", "--model", models_->of_images, models_->folder.write("x.pgm", pgm, 0600)});
  const Json line = json_lines(on_file.out).at(0);
  EXPECT_EQ(predictions[0]["probabilities"], line["probabilities"]);
  EXPECT_EQ(predictions[0]["name"], line["name"]);

  expect_error(post("{\"images\": []}"), 400, "at least one");
  expect_error(post("{\"images\": [[1, 2, 3]]}"), 400, "image 0");
  expect_error(post("{\"text\": \"a\"}"), 400, "\"images\"");
  Json bad = flat;
  bad[5] = 256;
  expect_error(post(Json{{"images", {flat, bad}}}.dump()), 400, "image 1");
  bad[5] = "x";
  expect_error(post(Json{{"images", {bad}}}.dump()), 400, "no number");
  rows[27].push_back(1);
  expect_error(post(Json{{"images", {rows}}}.dump()), 400, "28 numbers");
  expect_well();
}

}  // namespace
}  // namespace ringfold::test
