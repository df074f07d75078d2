"""Open-vocabulary counters: what boxes become, on constructed outputs and on tiny random models."""

import importlib
from pathlib import Path

import pytest
import torch

from pocketdiffusion.rewards.detectors import Box, apart, filled, grounded, iou, load, tokens_of


def box(*corners, score=1.0, phrase=0):
    return Box(torch.tensor(corners, dtype=torch.float), score, phrase)


def test_overlap_of_boxes():
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4], [4, 4, 8, 8], [0, 0, 4, 4]])
    torch.testing.assert_close(iou(a, b), torch.tensor([[1 / 3, 0.0, 1.0]]))


def test_of_boxes_in_one_place_the_best_stays():
    """IoU 0.6 with the first; the third is another phrase for the same thing, the fourth is elsewhere."""
    boxes = [
        box(0, 0, 8, 6, score=0.5),
        box(0, 0, 8, 10, score=0.9),
        box(0, 0, 8, 10, score=0.4, phrase=1),
        box(20, 0, 28, 10, score=0.3),
    ]
    assert [(b.score, b.phrase) for b in apart(boxes, 0.5)] == [(0.9, 0), (0.3, 0)]
    assert [b.score for b in apart(boxes, 0.7)] == [0.9, 0.5, 0.3]


def test_a_box_as_a_mask():
    mask = filled(torch.tensor([-3.0, 1.0, 2.2, 99.0]), (4, 5))
    assert mask.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (0, 1)]
    assert not filled(torch.tensor([-5.0, -5.0, -1.0, -1.0]), (4, 5)).any()


def test_tokens_of_phrases():
    """[CLS] red star . circle s . [SEP]"""
    offsets = [(0, 0), (0, 3), (4, 8), (8, 9), (10, 16), (16, 17), (17, 18), (0, 0)]
    assert tokens_of(offsets, ["red star", "circles"]) == [[1, 2], [4, 5]]


def test_queries_become_boxes_of_phrases():
    """Two phrases that share a noun's score are told apart by the rest of their words."""
    tokens, low = [[1, 2], [4, 5]], -9.0
    logits = torch.full((4, 8), low)
    logits[0, [1, 2]] = 2.0  # the first phrase
    logits[1, [2, 4, 5]] = torch.tensor([1.0, 1.0, 2.0])  # the second's two words, one of the first's
    logits[2, 3] = 5.0  # the full stop
    logits[3, 4] = -0.9  # 0.289: under the threshold
    corners = torch.arange(16.0).view(4, 4)
    made = grounded(logits, corners, tokens, 0.3, 0.2)
    assert [(b.phrase, b.corners.tolist()) for b in made] == [(0, [0, 1, 2, 3]), (1, [4, 5, 6, 7])]
    assert made[1].score == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
    logits[0, 1] = low  # one word of two at 0.88: 0.44 on average
    assert len(grounded(logits, corners, tokens, 0.3, 0.4)) == 2
    assert len(grounded(logits, corners, tokens, 0.3, 0.5)) == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "teachers")
        tiny = importlib.import_module("tiny_detectors")
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("detectors")
    return {kind: getattr(tiny, kind)(out / kind) for kind in ("owl", "dino", "sam")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["owl", "dino"])
@pytest.mark.parametrize("segmented", [False, True])
def test_random_models_count(kind, segmented, folders):
    """Everything scores about a half: all is seen, and NMS leaves what does not overlap."""
    count = load(folders[kind], folders["sam"] if segmented else None, threshold=0.01, text=0.0)
    pictures = torch.rand(2, 3, 40, 48) * 2 - 1
    found = count(pictures, ["red star", "green circle"])
    assert len(found) == 2 and all(set(f) == {"red star", "green circle"} for f in found)
    masks = [m for f in found for own in f.values() for m in own]
    assert masks and all(m.shape == (40, 48) and m.dtype == torch.bool and m.any() for m in masks)
    nothing = load(folders[kind], threshold=1.1)(pictures, ["red star"])
    assert nothing == [{"red star": []}] * 2


@pytest.mark.slow
def test_the_library_sees_the_same(folders):
    """Grounding DINO: the boxes of transformers' own reading of the outputs."""
    count = load(folders["dino"], threshold=0.01, text=0.0)
    picture = (torch.rand(1, 3, 40, 48) * 255).byte()
    bytes_ = picture[0].permute(1, 2, 0).numpy()
    with torch.no_grad():
        ours = count.boxes([bytes_], ["red star"])[0]
        given = count.processor(images=[bytes_], text=["red star."], return_tensors="pt")
        out = count.model(**given)
    theirs = count.processor.post_process_grounded_object_detection(
        out, threshold=0.01, text_threshold=0.0, target_sizes=[(40, 48)]
    )[0]
    torch.testing.assert_close(torch.stack([b.corners for b in ours]), theirs["boxes"])
    words = {"red", "star"}
    named = [i for i, label in enumerate(theirs["text_labels"]) if words <= {*label.replace(".", "").split()}]
    assert len(named) == len(ours), "every query scores on all words here"


@pytest.mark.slow
def test_what_is_no_detector(folders, tmp_path):
    with pytest.raises(ValueError, match=r"a sam, expected one of grounding-dino"):
        load(folders["sam"])
    with pytest.raises(ValueError, match="a owlv2, expected one of sam"):
        load(folders["dino"], folders["owl"])
    with pytest.raises(ValueError, match="no model of transformers"):
        load(tmp_path)
