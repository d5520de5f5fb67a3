"""Words for the objects of COCO, used where no ``synonyms.txt`` is beside the annotations.

They are this project's own choice of common words. The list that the authors of CHAIR publish is longer, and only with
that one do numbers compare with published ones.
"""

from __future__ import annotations

_TEXT = """
person: man woman boy girl child kid baby guy lady people adult teenager toddler player skier snowboarder skateboarder
person: skater surfer rider cyclist driver passenger worker officer policeman chef farmer soldier bride groom mother
person: father brother sister gentleman pitcher batter catcher referee crowd pedestrian
bicycle: bike
car: automobile sedan taxi cab van minivan jeep suv
motorcycle: motorbike moped scooter
airplane: plane jet airliner aircraft jetliner seaplane biplane
bus: minibus trolley
train: locomotive
truck: pickup lorry firetruck
boat: ship sailboat canoe kayak yacht ferry motorboat rowboat
traffic light: stoplight streetlight
fire hydrant: hydrant
bench: pew
bird: duck goose pigeon seagull gull parrot owl swan eagle hawk crow ostrich pelican penguin chicken rooster
cat: kitten kitty
dog: puppy pup hound terrier poodle bulldog
horse: pony foal mare colt stallion
sheep: lamb ram ewe
cow: cattle bull calf ox
bear: panda
backpack: knapsack
umbrella: parasol
handbag: purse
tie: necktie
suitcase: luggage
skis: ski
sports ball: ball
surfboard: longboard
tennis racket: racket racquet
wine glass: goblet wineglass
cup: mug
sandwich: burger hamburger cheeseburger
hot dog: hotdog
donut: doughnut
cake: cupcake cheesecake
chair: armchair stool
couch: sofa loveseat
potted plant: houseplant
dining table: table desk
toilet: commode urinal
tv: television monitor
laptop: computer notebook
cell phone: phone cellphone telephone smartphone
oven: stove
refrigerator: fridge
teddy bear: teddy
hair drier: hairdryer hairdrier
"""


_WITHOUT = """
stop sign, parking meter, elephant, zebra, giraffe, frisbee, snowboard, kite, baseball bat, baseball glove,
skateboard, bottle, fork, knife, spoon, bowl, banana, apple, orange, broccoli, carrot, pizza, bed, mouse, remote,
keyboard, microwave, toaster, sink, book, clock, vase, scissors, toothbrush
"""


def groups() -> list[list[str]]:
    """For each of the 80 categories its name and the words for it."""
    words: dict[str, list[str]] = {}
    for line in _TEXT.strip().splitlines():
        name, _, others = line.partition(":")
        words.setdefault(name, [name]).extend(others.split())
    return [*words.values(), *([name.strip()] for name in _WITHOUT.replace("\n", " ").split(","))]
