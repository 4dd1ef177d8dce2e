"""The numbers that tell how good features are, whatever the objective: those of a recipe's evaluate.features.  Needs no torch."""

from vitscale.metrics.metric import Metric, Panel, evaluated
from vitscale.metrics.system import ACCURACY

RANK = Panel("Effective rank of the features", learning=True)
DENSE = Panel("Segmentation", "ratio", learning=True)

OF_FEATURES: dict[str, Metric] = {
    "knn": evaluated("knn", "Top-1 accuracy of the 20 nearest other validation images", None, panel=ACCURACY, title="k-NN", unit="ratio",
                     better="higher", colour=4),
    "linear": evaluated("linear", "Top-1 accuracy of a linear probe between halves of the validation set", None, panel=ACCURACY,
                        title="Linear probe", unit="ratio", better="higher", colour=5),
    "segmentation": evaluated("miou", "Mean intersection over union of a linear probe of patches between halves of the set", None,
                              panel=DENSE, title="mIoU", unit="ratio", better="higher", word="mIoU", colour=6),
    "rankme": evaluated("rankme", "RankMe, the effective rank of the features", None, panel=RANK, title="RankMe", better="higher",
                        least=1.5),
}
