"""Bodies of If, Loop and Scan: unfolded into the graph around them for the analysis and the passes, and folded back."""

from ucpe_onnx.model.bodies.fold import fold, folded_nodes
from ucpe_onnx.model.bodies.markers import DOMAIN, ENTER, EXIT, IF
from ucpe_onnx.model.bodies.unfold import Unfolding, unfold

__all__ = ["DOMAIN", "ENTER", "EXIT", "IF", "Unfolding", "fold", "folded_nodes", "unfold"]
