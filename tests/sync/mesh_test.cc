// The mesh of ranks, over all meshes of up to 64 ranks; and its communicators on threads.
#include "sync/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/train/ranks.h"

namespace ringfold::sync {
namespace {

template <typename Body>
void for_all_meshes(int most, Body body) {
  for (int data = 1; data <= most; ++data) {
    for (int pipeline = 1; data * pipeline <= most; ++pipeline) {
      for (int tensor = 1; data * pipeline * tensor <= most; ++tensor) {
        auto mesh = Mesh::make(data * pipeline * tensor, pipeline, tensor);
        ASSERT_TRUE(mesh.ok()) << mesh.status().to_string();
        ASSERT_EQ(mesh->lengths(), (MeshPoint{data, pipeline, tensor}));
        body(*mesh);
      }
    }
  }
}

TEST(Mesh, RanksAndPointsAreOneToOne) {
  for_all_meshes(64, [](const Mesh& mesh) {
    std::set<int> seen;
    const MeshPoint n = mesh.lengths();
    for (int d = 0; d < n.data; ++d) {
      for (int p = 0; p < n.pipeline; ++p) {
        for (int t = 0; t < n.tensor; ++t) {
          const int rank = mesh.rank_of({d, p, t});
          ASSERT_GE(rank, 0);
          ASSERT_LT(rank, mesh.ranks());
          ASSERT_TRUE(seen.insert(rank).second);
          ASSERT_EQ(mesh.point_of(rank), (MeshPoint{d, p, t}));
        }
      }
    }
  });
}

TEST(Mesh, LinesPartitionTheRanksAlongEveryAxis) {
  for_all_meshes(64, [](const Mesh& mesh) {
    for (const Axis axis : kAxes) {
      std::map<int, std::vector<int>> by_color;
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        const auto line = mesh.line_of(rank, axis);
        ASSERT_EQ(line.size(), static_cast<size_t>(mesh.lengths().at(axis)));
        ASSERT_EQ(line[static_cast<size_t>(mesh.point_of(rank).at(axis))], rank);
        for (const int other : line) {
          for (const Axis fixed : kAxes) {
            if (fixed == axis) continue;
            ASSERT_EQ(mesh.point_of(other).at(fixed), mesh.point_of(rank).at(fixed));
          }
          ASSERT_EQ(mesh.color_of(other, axis), mesh.color_of(rank, axis));
        }
        by_color[mesh.color_of(rank, axis)].push_back(rank);
      }
      for (const auto& [color, ranks] : by_color) {
        ASSERT_EQ(ranks, mesh.line_of(ranks.front(), axis)) << "ranks of one line come in the order of coordinates";
      }
    }
  });
}

TEST(Mesh, PartsOfALayerAreNeighboursAndStagesLieFarthestApart) {
  const auto mesh = Mesh::make(8, 2, 2);
  ASSERT_TRUE(mesh.ok());
  EXPECT_EQ(mesh->line_of(0, Axis::kTensor), (std::vector<int>{0, 1}));
  EXPECT_EQ(mesh->line_of(0, Axis::kData), (std::vector<int>{0, 2}));
  EXPECT_EQ(mesh->line_of(0, Axis::kPipeline), (std::vector<int>{0, 4}));
  EXPECT_EQ(mesh->to_string(), "2 x 2 x 2 (data x pipeline x tensor)");
}

TEST(Mesh, WhatDoesNotDivideIsRefused) {
  const int bad[][3] = {{6, 4, 1}, {6, 1, 4}, {8, 3, 2},  {4, 4, 4},
                        {0, 1, 1}, {4, 0, 1}, {4, 1, -2}, {4, 1 << 20, 1 << 20}};
  for (const auto& [ranks, pipeline, tensor] : bad) {
    const auto mesh = Mesh::make(ranks, pipeline, tensor);
    ASSERT_FALSE(mesh.ok());
    EXPECT_EQ(mesh.status().code(), Code::kInvalid);
    EXPECT_NE(mesh.status().message().find(std::to_string(ranks) + " ranks"), std::string::npos)
        << mesh.status().message();
  }
}

TEST(Mesh, CommunicatorsAddUpAlongTheirOwnAxisOnly) {
  for (const auto& [ranks, pipeline, tensor] : {std::array{8, 2, 2}, {6, 1, 3}, {6, 3, 1}, {4, 1, 1}, {1, 1, 1}}) {
    const auto mesh = Mesh::make(ranks, pipeline, tensor);
    ASSERT_TRUE(mesh.ok());
    test::on_ranks(ranks, [&](Communicator& comm) {
      auto parts = split(comm, *mesh);
      ASSERT_TRUE(parts.ok()) << parts.status().to_string();
      Communicator* const by_axis[] = {&parts->data, &parts->pipeline, &parts->tensor};
      for (const Axis axis : kAxes) {
        Communicator& part = *by_axis[static_cast<size_t>(axis)];
        const auto line = mesh->line_of(comm.rank(), axis);
        EXPECT_EQ(part.size(), static_cast<int>(line.size()));
        EXPECT_EQ(part.rank(), mesh->point_of(comm.rank()).at(axis));
        std::vector<int32_t> gathered(line.size());
        const int32_t mine = comm.rank();
        const Status status = part.all_gather(&mine, gathered.data(), 1, DataType::kI32).wait();
        ASSERT_TRUE(status.ok()) << status.to_string();
        EXPECT_TRUE(std::equal(gathered.begin(), gathered.end(), line.begin(), line.end()));
      }
    });
  }
  test::on_ranks(
      2, [&](Communicator& comm) { EXPECT_EQ(split(comm, *Mesh::make(4, 1, 2)).status().code(), Code::kInvalid); });
}

}  // namespace
}  // namespace ringfold::sync
