"""A student that is shown the other boxes of the image. It exists only in training, and labels for the next round.

The student sees one crop and has to guess whether what stands before an object belongs to it. The boxes of the image
say that there is something else. Where two objects claim a cell the labels are unknown; what is pasted into the views,
with its box, is what a sighted student learns ownership from.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from mal.network.backbone import Backbone
from mal.network.head import Head
from mal.network.student import Student
from mal.train.neighbours import MAPS

WIDTH = 16  # channels between the maps and the pyramid


class Sighted(nn.Module):
    """A student and what turns maps of the other boxes into its pyramid; at first it does as the student does.

    Args:
        student: taken over, not copied; its size is that of the crops, which may be larger than a student's.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        width = student.head.value.in_channels
        self.eyes = nn.ModuleDict({stride: _eye(width) for stride in student.head.mix})

    @property
    def backbone(self) -> Backbone:
        """The student's."""
        return self.student.backbone

    @property
    def head(self) -> Head:
        """The student's."""
        return self.student.head

    def guide(self, crops: Tensor) -> Tensor:
        """As `Student.guide`."""
        return self.student.guide(crops)

    def logits(self, crops: Tensor, box: Tensor | None, neighbours: Tensor) -> Tensor:
        """As `Student.logits`.

        Args:
            neighbours: (B, 4, S/4, S/4), `neighbours.neighbour_maps` of each crop.
        """
        extra = {int(stride): eye(avg_pool2d(neighbours, int(stride) // 4)) for stride, eye in self.eyes.items()}
        return self.head(self.backbone((crops - self.student.mean) / self.student.std), box, extra).float()


Net = Student | Sighted


def logits(net: Net, crops: Tensor, box: Tensor | None, neighbours: Tensor) -> Tensor:
    """Logits of either; a plain student is not shown the neighbours."""
    return net.logits(crops, box, neighbours) if isinstance(net, Sighted) else net.logits(crops, box)


def blind(net: Net) -> Student:
    """The student alone."""
    return net.student if isinstance(net, Sighted) else net


def _eye(width: int) -> nn.Sequential:
    last = nn.Conv2d(WIDTH, width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]  it has one
    return nn.Sequential(nn.Conv2d(MAPS, WIDTH, 3, padding=1), nn.ReLU(inplace=True), last)
