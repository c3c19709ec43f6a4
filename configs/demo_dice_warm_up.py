"""`configs/demo.py` with scheduled losses; add `:smoke` for a short test run.

python run.py --config=configs/demo_dice_warm_up.py --workdir=runs/demo_dice_warm_up

The weight of soft Dice rises, and the gamma of the focal loss falls. Instead of a
number, the weight of a loss can be a schedule by step, and so can each hyperparameter
that `segloss.losses.scalars_of` lists. See docs/choosing_a_loss.md.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(size: str = "full") -> ConfigDict:
    warm_up_steps = 2 if size == "smoke" else 300
    loss = [
        dict(
            name="focal_loss",
            # Over the whole run, because no number of steps is given.
            gamma=dict(name="cosine", init_value=2.0, end_value=0.0),
        ),
        dict(
            name="soft_dice",
            classes="present",
            weight=dict(
                name="linear",
                init_value=0.0,
                end_value=1.0,
                transition_steps=warm_up_steps,
            ),
        ),
    ]
    return demo.get_config(size, loss)
