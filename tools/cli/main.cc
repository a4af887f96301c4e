// The command line of `ringfold`.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "ringfold/version.h"
#include "tools/cli/cli.h"
#include "tools/cli/perf/command_line.h"

namespace {

using namespace ringfold::cli;

constexpr const char* kAbout =
    "Ringfold: collective communication for distributed training.\n\n"
    "Start here:\n"
    "  ringfold doctor                        is this machine ready?\n"
    "  ringfold perf all --ranks 4            what do the collectives reach here?\n"
    "  ringfold run -n 4 -- ./my_program      start a program on 4 ranks\n";

constexpr const char* kExits =
    "Exit status: 0 all went well; 1 wrong results, a failed job or check; 2 the command line; 3 this machine lacks "
    "something\n"
    "(a program, host, permission). `run` and `train` exit as the first rank that failed did: its status, or 128 + "
    "signal;\n"
    "124 when --timeout ended the job.";

void add_run(CLI::App& app, JobOptions* o) {
  auto* verb =
      app.add_subcommand("run", "Start a program on several ranks, here or on other hosts, and end them together");
  verb->add_option("-n,--ranks", o->ranks, "Number of ranks (default: one for each host)")
      ->check(CLI::Range(1, 65536));
  verb->add_option("--hosts", o->hosts,
                   "Hosts, with commas: a,b:2 (b takes 2 ranks), [fd00::1]:2. Others than this one by ssh");
  verb->add_option("--address", o->address,
                   "Address of this host at which ranks of several hosts meet (default: found)");
  verb->add_option("--env", o->pass,
                   "Variable for the ranks, NAME or NAME=VALUE; RINGFOLD_* go to other hosts anyway")
      ->allow_extra_args(false);
  verb->add_flag("--prefix,!--no-prefix", o->prefix, "Put \"[rank]\" before each line of output (default: yes)");
  verb->add_flag(
      "--bind,!--no-bind", o->bind,
      "Give each rank on this host its own share of the processors, where there is one for each (default: yes)");
  verb->add_flag("--keep-going", o->keep_going, "Let the others go on when a rank fails");
  verb->add_option("--timeout", o->timeout_s, "End the job after so many seconds")->check(CLI::PositiveNumber);
  verb->add_option("--grace", o->grace_s, "Seconds from asking ranks to end (SIGTERM) to ending them (SIGKILL)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("command", o->command, "The program and its arguments, after --")->required();
  verb->footer(
      "Examples:\n"
      "  ringfold run -n 4 -- ./train --epochs 3\n"
      "  ringfold run -n 8 --hosts node1,node2 -- ./train     4 ranks on each\n"
      "  ringfold run --hosts node1:6,node2:2 -- ./train      8 ranks\n"
      "  RINGFOLD_SSH='ssh -p 2222' ringfold run --hosts node1 -- hostname\n\n"
      "Ranks find each other by the variables RINGFOLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE, _RENDEZVOUS and "
      "_KEY_FILE (a fresh\n"
      "key, which other hosts get through ssh's standard input). SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and "
      "SIGUSR2 are passed on.\n"
      "Nothing that a rank started in its process group outlives it, or this program.\n\n" +
      std::string(kExits));
}

void add_perf(CLI::App& app, PerfOptions* o) {
  auto* verb = app.add_subcommand("perf", "Measure operations over sizes, and check every result");
  add_measuring_options(verb, o);
  verb->add_option("-n,--ranks", o->ranks, "Start so many ranks (without it: be a rank of a launched job)")
      ->check(CLI::Range(1, 65536));
  verb->add_option("--hosts", o->hosts, "Start them on these hosts, see `ringfold run --help`");
  verb->add_option("--transport", o->transport, "auto, shm, tcp, ucx, loopback (ranks as threads)")
      ->check(CLI::IsMember({"auto", "shm", "tcp", "ucx", "loopback"}))
      ->capture_default_str();
  verb->add_option(
      "--codec", o->codec,
      "How f32 sums travel in all_reduce and reduce_scatter: none, bf16, int8, int4, ..., or auto (int8 where it is\n"
      "faster). The check then allows for the codec's error. Default: RINGFOLD_CODEC, else none");
  verb->add_option("--algorithm", o->algorithm, "auto, or ring tree direct oneshot recursive chain hierarchical")
      ->capture_default_str();
  verb->add_option("--memory", o->memory, "Buffers: ringfold (ringfold::allocate) or malloc")
      ->check(CLI::IsMember({"ringfold", "malloc"}))
      ->capture_default_str();
  verb->footer(
      "Examples:\n"
      "  ringfold perf all_reduce --ranks 4\n"
      "  ringfold perf all --ranks 4 --transport tcp --max 1M --json rows.json --plot rows.svg\n"
      "  ringfold run -n 4 -- ringfold perf all_gather --type bf16\n\n"
      "Size is that of a rank's largest buffer. algbw = size / median time. busbw = algbw times a factor that makes "
      "it\n"
      "comparable with the hardware: all_reduce 2(n-1)/n, those with a block per rank (n-1)/n, the others 1.\n"
      "Exit status 1 when any element was wrong.");
}

void add_others(CLI::App& app, InfoOptions* i, DoctorOptions* d, ExplainOptions* e, TrainOptions* t) {
  auto* info_verb = app.add_subcommand("info", "This host, its transports, and the settings in force");
  info_verb->add_flag("--json", i->json, "As one JSON object");
  info_verb->footer(
      "Examples:\n  ringfold info\n  RINGFOLD_TRANSPORT=tcp ringfold info --json\n"
      "Exit status 3 when a variable is not valid or launchers disagree.");

  auto* doctor_verb = app.add_subcommand("doctor", "Try what a job needs; say what is wrong and how to mend it");
  doctor_verb->add_option("-n,--ranks", d->ranks, "For a job of so many ranks")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  doctor_verb->add_option("--hosts", d->hosts, "Also these hosts, see `ringfold run --help`");
  doctor_verb->add_flag("--self-test,!--no-self-test", d->self_test,
                        "Run a small all_reduce over every transport (default: yes)");
  doctor_verb->footer(
      "Examples:\n  ringfold doctor\n  ringfold doctor --ranks 8 --hosts node1,node2\nExit status 1 when a line says "
      "FAIL.");

  auto* explain_verb =
      app.add_subcommand("explain", "What a collective would do: its schedule, what is proved of it, its cost");
  explain_verb
      ->add_option("collective", e->op,
                   "all_reduce reduce reduce_scatter all_gather broadcast gather scatter all_to_all barrier")
      ->required();
  explain_verb->add_option("-n,--ranks", e->ranks, "Number of ranks")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  explain_verb->add_option("--size", e->size, "Bytes of a rank's largest buffer (K, M, G)")->capture_default_str();
  explain_verb->add_option("--type", e->type, "Element type")->capture_default_str();
  explain_verb
      ->add_option("--algorithm", e->algorithm, "auto, or ring tree direct oneshot recursive chain hierarchical")
      ->capture_default_str();
  explain_verb->add_option(
      "--codec", e->codec,
      "Also this one in the table of codecs: f16 int8 int5+stochastic int4+rotate topk:0.01 ...");
  explain_verb->add_option("--lanes", e->lanes, "Lanes (default: the tuner's choice)")->check(CLI::Range(1, 4));
  explain_verb->add_option("--root", e->root, "Root")->capture_default_str();
  explain_verb->add_option("--rank", e->rank, "Only this rank's steps")->check(CLI::NonNegativeNumber);
  explain_verb->add_option("--hosts-of", e->hosts_of, "Host number of each rank: 0,0,1,1 (default: one host)");
  explain_verb->add_option("--svg", e->svg, "Also draw the schedule, for up to 32 ranks");
  explain_verb->footer(
      "Examples:\n  ringfold explain all_reduce --ranks 4 --algorithm ring --svg ring.svg\n"
      "  ringfold explain all_reduce --ranks 8 --hosts-of 0,0,0,0,1,1,1,1 --algorithm hierarchical --rank 0");

  auto* train_verb =
      app.add_subcommand("train", "Train a small network on Fashion-MNIST with data parallelism (ringfold-train)");
  train_verb->add_option("-n,--ranks", t->ranks, "Start so many ranks")->check(CLI::Range(1, 65536));
  train_verb->add_option("--hosts", t->hosts, "Start them on these hosts, see `ringfold run --help`");
  train_verb->prefix_command();  // all else is for ringfold-train
  train_verb->footer(
      "Examples:\n  ringfold train --ranks 4 --model cnn --epochs 2\n  ringfold train --model mlp --help\n"
      "The arguments after --ranks and --hosts go to ringfold-train: `ringfold-train --help` lists them.");
}

void add_tune(CLI::App& app, TuneOptions* o) {
  auto* verb =
      app.add_subcommand("tune", "Measure the links of this set of hosts, and choose algorithms by them from now on");
  verb->add_option("-n,--ranks", o->ranks, "Start so many ranks")->check(CLI::Range(2, 65536));
  verb->add_option("--hosts", o->hosts, "Start them on these hosts, see `ringfold run --help`");
  verb->add_option("--transport", o->transport, "auto, shm or tcp")->capture_default_str();
  verb->add_option("--seconds", o->seconds, "Time for measuring")
      ->check(CLI::Range(0.1, 60.0))
      ->capture_default_str();
  verb->footer(
      "Examples:\n  ringfold tune --ranks 4\n  ringfold tune --ranks 8 --hosts node1,node2\n"
      "The figures are kept in RINGFOLD_CACHE_DIR (default: ~/.cache/ringfold) per set of hosts, ranks per host and "
      "transports; "
      "jobs like this one\nuse them from then on. Without them, choices come from default figures.");
}

// This command line without what starts ranks: what a started rank is to do.
std::vector<std::string> own_command(int argc, char** argv) {
  std::vector<std::string> command = {own_path()};
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "-n" || word == "--ranks" || word == "--hosts") {
      ++i;
    } else if (!word.starts_with("--ranks=") && !word.starts_with("--hosts=") &&
               !(word.starts_with("-n") && word.size() > 2)) {
      command.emplace_back(word);
    }
  }
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(kAbout, "ringfold");
  app.set_version_flag("--version", std::string("ringfold ") + ringfold::version());
  app.require_subcommand(1);
  app.footer(kExits);
  app.failure_message(CLI::FailureMessage::simple);
  if (winsize size{}; ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 100)
    app.get_formatter()->column_width(34);
  JobOptions job;
  PerfOptions perf_options;
  TuneOptions tune_options;
  InfoOptions info_options;
  DoctorOptions doctor_options;
  ExplainOptions explain_options;
  TrainOptions train_options;
  add_run(app, &job);
  add_perf(app, &perf_options);
  add_tune(app, &tune_options);
  add_others(app, &info_options, &doctor_options, &explain_options, &train_options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool asked = error.get_exit_code() == 0;  // --help, --version
    app.exit(error);
    return asked ? kExitOk : kExitUsage;
  }
  if (app.got_subcommand("run")) {
    if (job.ranks == 0 && job.hosts.empty()) {
      fmt::print(stderr, "ringfold run: say how many ranks (-n 4) or where (--hosts a,b)\n");
      return kExitUsage;
    }
    return run_job(job);
  }
  if (app.got_subcommand("perf")) return perf(perf_options, own_command(argc, argv));
  if (app.got_subcommand("tune")) return tune(tune_options, own_command(argc, argv));
  if (app.got_subcommand("info")) return info(info_options);
  if (app.got_subcommand("doctor")) return doctor(doctor_options);
  if (app.got_subcommand("explain")) return explain(explain_options);
  train_options.arguments = app.get_subcommand("train")->remaining();
  return train(train_options);
}
