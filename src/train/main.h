#pragma once

namespace ringfold::train {

// The program ringfold-train: one rank. 0 when all went well.
int train_main(int argc, char** argv);

}  // namespace ringfold::train
