// The command line of `ringfold`.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>

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
  verb->add_option(
          "--restarts", o->restarts,
          "Start a rank that fails again, with RINGFOLD_RESTARTED=1, so often in all; the others go on, and take "
          "it in if the program says that it is open (Options::open)")
      ->check(CLI::Range(0, 1 << 20));
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
  verb->add_option("--transport", o->transport, "auto, shm, verbs, tcp, ucx, loopback (ranks as threads)")
      ->check(CLI::IsMember({"auto", "shm", "verbs", "tcp", "ucx", "loopback"}))
      ->capture_default_str();
  verb->add_option(
      "--codec", o->codec,
      "How f32 sums travel in all_reduce and reduce_scatter: none, bf16, int8, int4, ..., or auto (int8 where it is\n"
      "faster). The check then allows for the codec's error. Default: RINGFOLD_CODEC, else none");
  verb->add_option("--algorithm", o->algorithm,
                   "auto, or ring tree direct oneshot recursive doubling chain star hierarchical")
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

void add_launch(CLI::App& verb, TrainOptions* t) {
  verb.add_option("-n,--ranks", t->ranks, "Start so many ranks; with --goal the default is one for each processor")
      ->check(CLI::Range(1, 65536));
  verb.add_option("--hosts", t->hosts, "Start them on these hosts, see `ringfold run --help`");
  verb.add_option(
          "--restarts", t->restarts,
          "Start ranks that fail again, so often in all; an --elastic run takes them in. One that is not, or of "
          "pipelines or shared layers and has no whole replica left, is started again as a whole")
      ->check(CLI::Range(0, 1 << 20));
}

// What stands behind the first argument of ringfold-train's: the launcher's may be among it.
void take_launch(std::vector<std::string> words, TrainOptions* t) {
  CLI::App verb;
  verb.set_help_flag();
  verb.allow_extras();
  add_launch(verb, t);
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  verb.parse(words);
  t->arguments = verb.remaining();
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
      ->add_option("--algorithm", e->algorithm,
                   "auto, or ring tree direct oneshot recursive doubling chain star hierarchical")
      ->capture_default_str();
  explain_verb->add_option(
      "--codec", e->codec,
      "Also this one in the table of codecs: f16 int8 int5+stochastic int4+rotate topk:0.01 ...");
  explain_verb->add_option("--lanes", e->lanes, "Lanes (default: the tuner's choice)")->check(CLI::Range(1, 4));
  explain_verb->add_option("--root", e->root, "Root")->capture_default_str();
  explain_verb->add_option("--rank", e->rank, "Only this rank's steps")->check(CLI::NonNegativeNumber);
  explain_verb->add_option("--hosts-of", e->hosts_of, "Host number of each rank: 0,0,1,1 (default: one host)");
  explain_verb->add_option("--transport", e->transport, "What joins the ranks of a host: shm or tcp")
      ->check(CLI::IsMember({"shm", "tcp"}))
      ->capture_default_str();
  explain_verb->add_option("--svg", e->svg, "Also draw the schedule, for up to 32 ranks");
  explain_verb->footer(
      "Examples:\n  ringfold explain all_reduce --ranks 4 --algorithm ring --svg ring.svg\n"
      "  ringfold explain all_reduce --ranks 8 --hosts-of 0,0,0,0,1,1,1,1 --algorithm hierarchical --rank 0");

  auto* train_verb =
      app.add_subcommand("train", "Train a small network on images or text, on several ranks (ringfold-train)");
  train_verb->set_help_flag();
  add_launch(*train_verb, t);
  train_verb->prefix_command();  // all else is for ringfold-train, --help too
  train_verb->footer(
      "Examples:\n  ringfold train --ranks 4 --model cnn --epochs 2\nand all options of ringfold-train:\n");
}

struct ModelVerb {
  const char* name;
  const char* about;
};
constexpr ModelVerb kModelVerbs[] = {
    {"export", "Make a TorchScript file of a trained model, and a card that describes it (ringfold-model)"},
    {"predict", "Answers of an exported model to files (ringfold-model)"},
    {"serve", "Answer HTTP requests with an exported model (ringfold-model)"},
};

void add_model_verbs(CLI::App& app) {
  for (const auto& [name, about] : kModelVerbs) {
    auto* verb = app.add_subcommand(name, about);
    verb->set_help_flag();  // --help, too, is for ringfold-model
    verb->prefix_command();
  }
}

void add_pipeline(CLI::App& app, PipelineOptions* o) {
  auto* verb = app.add_subcommand("pipeline", "Pipeline schedules: who computes what when, idle time, and memory");
  verb->add_option("--schedule", o->schedule,
                   "gpipe 1f1b interleaved-1f1b zb-h1 zb-h2 zb-v (default: all of them, side by side)");
  verb->add_option("-p,--ranks", o->ranks, "Ranks of the pipeline")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  verb->add_option("-m,--micro-batches", o->micro_batches, "Micro-batches of a batch")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  verb->add_option("-v,--chunks", o->chunks, "Stages of each rank (default: what the schedule takes, 1 or 2)")
      ->check(CLI::Range(1, 1024));
  verb->add_option("--times", o->times,
                   "F,B,W: time of a rank for forward, gradient of the input, gradient of weights")
      ->capture_default_str();
  verb->add_option("--transfer", o->transfer, "Time of an activation or gradient between two ranks")
      ->capture_default_str();
  verb->add_option("--trace", o->trace, "Write the schedule as a trace for ui.perfetto.dev; a unit of time is 1 ms");
  verb->add_flag("--json", o->json, "As a JSON array with an object for each schedule, lists of actions included");
  verb->footer(
      "Examples:\n"
      "  ringfold pipeline -p 4 -m 8                                all schedules, compared\n"
      "  ringfold pipeline --schedule zb-h1 -p 4 -m 8 --times 1,1.2,0.8\n"
      "  ringfold pipeline --schedule zb-v -p 8 -m 16 --trace zb-v.json\n\n"
      "A model is cut into stages on p ranks, a batch into m micro-batches; stages work on different micro-batches "
      "at a\n"
      "time. What is left of p ranks' time is the bubble: filling and draining the pipeline. More micro-batches make "
      "it\n"
      "smaller, as do several stages per rank (interleaved-1f1b: v times the messages) and doing the gradients of\n"
      "weights, which nobody waits for, where a rank would idle (zb-*). 1f1b holds p activations however many\n"
      "micro-batches there are, gpipe all m. Every schedule shown was checked: complete, in order, free of "
      "deadlock.\n"
      "docs/pipeline.md says more.");
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

void add_report(CLI::App& app, ReportOptions* o) {
  auto* verb = app.add_subcommand("report", "Make one HTML page of a training run's log");
  verb->add_option("log", o->log,
                   "What `ringfold train --json FILE` wrote, of a run that ended, failed or still goes on")
      ->required();
  verb->add_option("-o,--output", o->output, "The page (default: the log's name with .html after it)");
  verb->add_option("--trace", o->trace, "Also draw this timeline of a pipeline (a trace in Chrome's format)");
  verb->footer(
      "Examples:\n  ringfold train --ranks 4 --json run.jsonl\n  ringfold report run.jsonl -o run.html\n"
      "The page needs no other file and no network: loss, accuracy, rate, each rank's time by what it was spent on, "
      "decisions,\n"
      "settings. Exit status 1 when the log is none, 3 when a file cannot be read or written.");
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
  ReportOptions report_options;
  PipelineOptions pipeline_options;
  add_run(app, &job);
  add_perf(app, &perf_options);
  add_tune(app, &tune_options);
  add_model_verbs(app);
  add_pipeline(app, &pipeline_options);
  add_others(app, &info_options, &doctor_options, &explain_options, &train_options);
  add_report(app, &report_options);
  try {
    app.parse(argc, argv);
    if (app.got_subcommand("train")) {
      take_launch(app.get_subcommand("train")->remaining(), &train_options);
      const auto& words = train_options.arguments;
      for (const char* help : {"-h", "--help"}) {
        if (std::find(words.begin(), words.end(), help) != words.end())
          fmt::print("{}\n", app.get_subcommand("train")->help("ringfold"));
      }
    }
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
  if (app.got_subcommand("report")) return report(report_options);
  if (app.got_subcommand("doctor")) return doctor(doctor_options);
  if (app.got_subcommand("pipeline")) return pipeline(pipeline_options);
  if (app.got_subcommand("explain")) return explain(explain_options);
  for (const ModelVerb& verb : kModelVerbs) {
    if (app.got_subcommand(verb.name)) return use_model(verb.name, app.get_subcommand(verb.name)->remaining());
  }
  return train(train_options);
}
