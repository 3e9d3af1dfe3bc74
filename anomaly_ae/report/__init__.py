"""A finished RUN, written for people: heatmap pictures and one self-contained page.

================  =========================================================================
`colour`          the absolute colour scale: 0 = a typical normal, 1 = the threshold
`pictures`        small pictures of a run: thumbnails, details, ``pictures.npz``
`sheets`          many small pictures encoded as one, within the budget of a page
`panels`          the pictures and outlines of one card
`heatmap`         one image with its anomaly map as a PNG of full resolution
`planes`          a volume as three planes side by side
`run`             the RUN folder -> `Run`
`words`           figures as text: percentages, intervals, the sentence at the top of the page
`plot`            what plots are made of, as inline SVG: frame, round numbers, titles, words
`figures`         ROC, precision-recall, histogram, outlines as inline SVG
`methods`         `Run` -> ``methods.md``
`html`            `Run` -> ``report.html`` (with ``template.html.j2``, ``report.css``, ``report.js``)
================  =========================================================================
"""

from anomaly_ae.report.colour import colormap, decode_display, encode_display, overlay_lut
from anomaly_ae.report.heatmap import overlay, write_heatmap
from anomaly_ae.report.html import write_report
from anomaly_ae.report.pictures import (
    MAX_GALLERY_IMAGES,
    PictureWriter,
    refuse_damaged,
    thumbnail_map,
    thumbnail_side_px,
)
from anomaly_ae.report.planes import Planes

__all__ = [
    "MAX_GALLERY_IMAGES",
    "PictureWriter",
    "Planes",
    "colormap",
    "decode_display",
    "encode_display",
    "overlay",
    "overlay_lut",
    "refuse_damaged",
    "thumbnail_map",
    "thumbnail_side_px",
    "write_heatmap",
    "write_report",
]
