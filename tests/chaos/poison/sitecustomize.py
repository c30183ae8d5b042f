"""Put on PYTHONPATH, it makes every face child of a run the poisoned one: a marked name crashes it,
hangs it or makes it eat memory."""

import sys

if "emolake.actors.face_child" in sys.orig_argv:
    sys.argv = ["poison", sys.orig_argv[-1]]
    sys.path.insert(0, "")
    from tests.actors import poison_child

    poison_child.face_child.main()
    sys.exit(0)
