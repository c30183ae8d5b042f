"""What happens to data, in plain Python: no Ray here, and every room can be tried in a REPL.

    corpus        INPUT -> videos -> what the ledger leaves to do -> segments
    video         a segment's bytes -> frames, sound and words on one clock
    faces         frames -> detections -> tracks -> windows of aligned crops
    models        EMO-LLaMA and its sisters: modules, published weights, label scoring
    annotators    windows -> annotations, one file a system
    lake          annotations -> committed, partitioned Parquet, and its ledger
    evaluation    what people saw, and how well models agree with it
    learning      labelled media -> a tuned model
    presentation  tables -> pages, drawn videos, other tools' files

    storage       under them all: one door to files, objects and weights

`config`, `errors` and `labels` are everybody's. The imports of the rooms form no circle.
"""
