#pragma once

namespace ringfold::deploy {

// The program ringfold-model: export, predict, serve. 0 when all went well, 2 for its command line, else 1.
int model_main(int argc, char** argv);

}  // namespace ringfold::deploy
