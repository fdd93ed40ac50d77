"""Schemas of the robots in the released model's data, with the column names of their public sets."""

from moteur.data.robot import Robot, Source

_HEAD_AND_HANDS = ("images.rgb.head", "images.rgb.hand_left", "images.rgb.hand_right")
_ARM_GRIPPER_TWICE = (6, -1, 6, -1)


def _genie(kind: str) -> tuple[Source, ...]:
    """Seven joints left, seven right, then the two grippers."""
    return tuple(
        Source(f"{kind}.{side}_{part}.position", size)
        for part, size in (("joint", 7), ("gripper", 1))
        for side in ("left", "right")
    )


def _two_armed(name: str, *robot_types: str) -> Robot:
    """Six joints and a gripper, left then right: the order of the ALOHA family."""
    state, action = (
        tuple(
            Source(f"{kind}.{side}_{part}.position", size)
            for side in ("left", "right")
            for part, size in (("joint", 6), ("gripper", 1))
        )
        for kind in ("states", "actions")
    )
    return Robot(name, state, action, _HEAD_AND_HANDS, _ARM_GRIPPER_TWICE, robot_types)


ROBOTS = (
    Robot(
        name="franka",
        state=(Source("states.joint.position", 7), Source("states.gripper.position", 1)),
        action=(Source("actions.joint.position", 7), Source("actions.gripper.position", 1)),
        cameras=("images.rgb.head", "images.rgb.hand", None),
        relative=(7, -1),
        robot_types=("franka", "Franka"),
    ),
    Robot(
        name="genie1",
        state=_genie("states"),
        action=_genie("actions"),
        cameras=_HEAD_AND_HANDS,
        relative=(14, -2),
        robot_types=("genie1", "Genie-1"),
    ),
    Robot(
        name="a2d",
        state=(Source("observation.states.joint.position", 14), Source("observation.states.effector.position", 2)),
        action=(Source("actions.joint.position", 14), Source("actions.effector.position", 2)),
        cameras=("observation.images.head", "observation.images.hand_left", "observation.images.hand_right"),
        relative=(14, -2),
        robot_types=("a2d",),
    ),
    _two_armed("lift2", "arx_lift2", "ARX Lift-2"),
    _two_armed("split_aloha", "piper", "split_aloha", "AgileX Split Aloha"),
    _two_armed("ac_one", "acone", "ARX AC One"),
    Robot(
        name="aloha",
        state=(Source("observation.state", 14),),
        action=(Source("action", 14),),
        cameras=tuple(f"observation.images.cam_{name}" for name in ("high", "left_wrist", "right_wrist")),
        relative=_ARM_GRIPPER_TWICE,
        robot_types=("aloha",),
    ),
    Robot(
        name="panda",
        state=(Source("observation.state", 7),),
        action=(Source("action", 7),),
        cameras=("observation.images.image", "observation.images.image2", None),
        relative=(7,),
        robot_types=("panda",),
    ),
)
