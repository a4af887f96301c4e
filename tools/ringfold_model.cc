// Export, predict, serve; see src/deploy.
#include "deploy/main.h"

int main(int argc, char** argv) { return ringfold::deploy::model_main(argc, argv); }
