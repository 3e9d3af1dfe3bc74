"""DICOM objects made of a source: Secondary Capture, Segmentation, and how they refer to it.

highdicom knows series of single-frame images best; so each frame of any kind of object is shown to it as one
(`one_frame`), and references are set to the true source afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.dicom.values import n_frames_of, of_frame
from anomaly_ae.records import BoolArray
from anomaly_ae.version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Source = tuple["Dataset", int]
"""Header of a file, and a frame in it, counted from 0."""

RESEARCH_USE = "research use, not a medical device"

_NAME = "anomaly_ae"
_SERIES_NUMBERS = {"sc": 9001, "seg": 9002}  # behind those of a scanner
_SERIES_DESCRIPTIONS = {"sc": f"Anomaly overlay - {RESEARCH_USE}", "seg": f"Anomaly regions - {RESEARCH_USE}"}
_MAY_BE_EMPTY = (  # highdicom asks for these; PS3.5 7.4.3: type 2
    *("PatientName", "PatientID", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "PositionReferenceIndicator", "SliceThickness"),
)
_OF_ANY_FORM = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")  # highdicom refuses "14:04:38"
_OF_FRAME = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
_PLACE = ("FrameOfReferenceUID", *_OF_FRAME)
_OF_PICTURE = (  # what stays true of a picture of the same pixels
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "PixelAspectRatio", "PatientOrientation", "ImageLaterality"),
    *("BurnedInAnnotation", "RecognizableVisualFeatures"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


def one_frame(header: Dataset, frame: int) -> Dataset:
    """Return patient, study, series and place of one frame, in the form of a single-frame Secondary Capture.

    Its SOPInstanceUID is new, for references to it to be known again. `header` is not changed.
    """
    from highdicom import UID
    from pydicom.uid import SecondaryCaptureImageStorage

    single = header[0x00080000:0x00280000]  # a range of tags; of private ones none is copied on
    if "SpacingBetweenSlices" in single:
        del single.SpacingBetweenSlices  # in many files something else; highdicom measures it by the positions
    for key in _MAY_BE_EMPTY:
        if key not in single:
            _put(single, key, None)
    for key in _OF_ANY_FORM:
        _put(single, key, None)
    for key, sequence in _OF_FRAME.items():
        _put(single, key, of_frame(header, frame, sequence, key))
    for key in _OF_PICTURE:
        if key in header and key not in single:
            single[key] = header[key]
    if not single.PixelSpacing:
        _put(single, "PixelAspectRatio", _aspect_ratio(header))
    _put(single, "Rows", header.Rows)
    _put(single, "Columns", header.Columns)
    _put(single, "SOPClassUID", SecondaryCaptureImageStorage)
    _put(single, "SOPInstanceUID", UID())
    return single


def secondary_capture(source: Dataset, picture: npt.NDArray[np.uint8], identity: dict[str, Any]) -> Dataset:
    """Make a picture of `one_frame` that any viewer shows: 8-bit RGB, uncompressed (PS3.3 A.8.1).

    BurnedInAnnotation is that of the source, whose pixels the picture shows; no text is drawn into it.
    """
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    capture: Dataset = SCImage.from_ref_dataset(
        source,
        picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # asked for; taken back below
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity,
    )
    capture.copy_patient_and_study_information(source)
    _put(capture, "PatientOrientation", None)
    if not source.get("ImageLaterality"):
        _put(capture, "Laterality", source.get("Laterality"))
    for key in _OF_PICTURE:
        if source.get(key) not in (None, ""):
            capture[key] = source[key]
    capture.DerivationDescription = f"Anomaly map laid over the image; {RESEARCH_USE}"
    return capture


def segmentation(frames: Sequence[Dataset], inside: BoolArray, identity: dict[str, Any]) -> Dataset:
    """Make a binary segmentation of one segment "Anomaly" (PS3.3 A.51); frames without regions are left out.

    Parameters
    ----------
    frames : sequence of Dataset
        From `one_frame`, of one series and orientation.
    inside : bool array, (N, H, W)
        True in regions; somewhere it is.
    identity : mapping
        Keyword arguments of highdicom: series, instance and equipment.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    abnormal = codes.SCT.MorphologicallyAbnormalStructure  # 49755003
    algorithm = AlgorithmIdentificationSequence(_NAME, codes.DCM.ArtificialIntelligence, __version__)
    segment = SegmentDescription(1, "Anomaly", abnormal, abnormal, "AUTOMATIC", algorithm)
    if not has_place(frames[0]):
        frames = [_without_place(frame) for frame in frames]
    found: Dataset = Segmentation(
        frames,
        inside,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        content_label="ANOMALY",
        content_description=RESEARCH_USE,
        **identity,
    )
    if "PlaneOrientationSequence" not in found.SharedFunctionalGroupsSequence[0]:
        _put(found, "PatientOrientation", frames[0].get("PatientOrientation"))
    found.BurnedInAnnotation = "NO"  # regions alone: nothing of the image is in them
    measures = found.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    if measures and len(frames) == 1 and "SpacingBetweenSlices" in measures[0]:
        del measures[0].SpacingBetweenSlices  # one slice has no neighbour; highdicom says 1 mm
    return found


def identity(kind: str, series_uid: str, instance_number: int, model_sha256: str) -> dict[str, Any]:
    """Return what says which object it is and what made it: keyword arguments of highdicom's constructors."""
    from highdicom import UID

    return {
        "series_instance_uid": series_uid,
        "series_number": _SERIES_NUMBERS[kind],
        "series_description": _SERIES_DESCRIPTIONS[kind],
        "sop_instance_uid": str(UID()),
        "instance_number": instance_number,
        "manufacturer": _NAME,
        "manufacturer_model_name": _NAME,
        "software_versions": __version__,
        "device_serial_number": model_sha256,
        "content_qualification": "RESEARCH",
        "contributing_equipment": [_equipment(model_sha256)],
    }


def _put(dataset: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute without changing an element that another data set shares."""
    from pydicom.datadict import dictionary_VR
    from pydicom.tag import Tag

    dataset.add_new(Tag(keyword), dictionary_VR(keyword), value)


def has_place(source: Dataset) -> bool:
    """Whether a frame lies in a frame of reference, with all that a segmentation has to say of it."""
    return all(source.get(key) not in (None, "") for key in _PLACE)


def _without_place(source: Dataset) -> Dataset:
    rest = source[0x00080000:0x7FE00000]
    for key in _OF_FRAME:
        if key in rest:
            del rest[key]
    return rest


def _aspect_ratio(header: Dataset) -> list[int] | None:
    """Return height and width of a pixel where they differ and no distance in the patient says so (C.7.6.3.1.7)."""
    if header.get("PixelAspectRatio"):
        return [int(number) for number in header.PixelAspectRatio]
    spacing = header.get("ImagerPixelSpacing")
    if not spacing or spacing[0] == spacing[1]:
        return None
    return [round(1000 * float(length)) for length in spacing]


def _equipment(model_sha256: str) -> Any:
    from highdicom import ContributingEquipment
    from pydicom.sr.codedict import codes

    return ContributingEquipment(
        _NAME,
        codes.DCM.ProcessingEquipment,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number=model_sha256,
        contribution_description=f"Anomaly detection; {RESEARCH_USE}",
    )


def refer(found: Dataset, sources: Sequence[Source]) -> None:
    """Name the images that an object was made from (PS3.3 C.12.2), and repeat what they say of patient and study."""
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    for key in _OF_ANY_FORM:
        if key in sources[0][0]:
            found[key] = sources[0][0][key]
    images: dict[str, Dataset] = {}
    frames: dict[str, list[int]] = {}
    for header, frame in sources:
        images[str(header.SOPInstanceUID)] = header
        frames.setdefault(str(header.SOPInstanceUID), []).append(frame + 1)
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    found.SourceImageSequence = [_reference(header, frames[uid]) for uid, header in images.items()]
    for item in found.SourceImageSequence:
        item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    series = Dataset()
    series.SeriesInstanceUID = sources[0][0].SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(header, []) for header in images.values()]
    found.ReferencedSeriesSequence = [series]


def _reference(header: Dataset, frames: Sequence[int]) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frames and n_frames_of(header) > 1:
        item.ReferencedFrameNumber = list(frames)
    return item


def name_true_sources(found: Dataset, frames: Sequence[Dataset], sources: Sequence[Source]) -> None:
    """Let each frame of a segmentation refer to the file and frame that it is of."""
    true = {str(single.SOPInstanceUID): source for single, source in zip(frames, sources, strict=True)}
    for groups in found.PerFrameFunctionalGroupsSequence:
        item = groups.DerivationImageSequence[0].SourceImageSequence[0]
        header, frame = true[str(item.ReferencedSOPInstanceUID)]
        item.update(_reference(header, [frame + 1]))
