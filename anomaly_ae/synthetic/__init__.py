"""The embedded data: normal parts and surfaces, graded defects, whole data sets; all drawn here, nothing downloaded.

Whoever tries the program, tests it or measures it uses these images. They are drawn so that detection has an end:
the weakest grades of every defect are below what the noise and the benign variation let anyone see.
"""

from anomaly_ae.synthetic.dataset import GRADES, LOT_SIZE, make_dataset
from anomaly_ae.synthetic.defects import DEFECT_TYPES, MIN_CHANGE, plant_defect
from anomaly_ae.synthetic.scenes import BENIGN_DUST_PX, KINDS, make_noise_dataset, make_part, make_surface
from anomaly_ae.synthetic.volumes import draw_head, draw_lesion, make_volumes

__all__ = [
    "BENIGN_DUST_PX",
    "DEFECT_TYPES",
    "GRADES",
    "KINDS",
    "LOT_SIZE",
    "MIN_CHANGE",
    "draw_head",
    "draw_lesion",
    "make_dataset",
    "make_noise_dataset",
    "make_part",
    "make_surface",
    "make_volumes",
    "plant_defect",
]
