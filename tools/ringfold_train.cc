// One rank of a training job; see src/train.
#include "train/main.h"

int main(int argc, char** argv) { return ringfold::train::train_main(argc, argv); }
