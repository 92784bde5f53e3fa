"""Articles and number of English nouns: `a` or `an`, plural, uncountable. The rules are those of the library inflect."""

import re
from functools import cache

import inflect

ENGINE = inflect.engine()
SPELLED_OUT = re.compile(r"[A-Z]{1,3}|[B-DF-HJ-NP-TV-Z]+")  # abbreviations read letter by letter: LED, MG, S of "S-shaped"
PLURALS = frozenset("algae antennae cacti cattle cyathia elytra fungi larvae nuclei police strata sulci vertebrae".split())
SINGULAR_ENDING = re.compile(r"(ss|us|is|'s|wards)$")
SINGULARS = frozenset("abdomen albatross atlas bias canvas gas graffiti lens pampas pancreas rhinoceros specimen thermos sideways always".split())
PLURAL_IN_S = frozenset("emus gnus menus kiwis skis taxis tutus".split())  # plurals with the ending of a singular
UNCOUNTABLE = frozenset(
    """
    aioli algae alpenglow aluminium aluminum armor armour art artwork ash asparagus asphalt bacon bamboo banding bark barring basalt
    basil bedding beef beer blubber bodywork bracing bracken brass bread brick brickwork broth bunting burlap bushland butter
    cabinetry calligraphy camouflage candlelight caramel cardboard carpeting cartilage celluloid cement ceramic cheese
    chicken chiffon china chocolate chrome cilantro cladding clay cloth clothing clutter coal coffee coloration colour-work
    colouration concrete condensation confetti copper coral corduroy coriander corn cornmeal cotton crystal custard daylight
    debris decking denim dew dirt dough down driftwood drool drywall duckweed ductwork dust elastic enamel enamelware equipment fabric
    farmland fat feathering felt fencing fiberglass fibreglass filling flannel fleece flesh flooring flour fluff foam fog foil foliage
    footwear formwork fretwork frost frosting froth fruit fur furniture fuzz garbage garlic gauze ginger glare glass glazing glitter
    gloss gossamer graffiti granite graphite grass grassland gravel gravy greenery hair ham handwriting hay headgear heather
    honey ice icing ink insulation iridescence iron ironwork ivory ivy jam jelly jewellery jewelry juice kelp keratin ketchup lace
    lacquer latex lather latticework laundry lava leather lettering lettuce lichen light lighting limestone linen linoleum lipstick
    liquid litter livestock luggage lumber luster lustre lycra machinery magma mahogany marble masonry matting mayonnaise meat
    meltwater meringue mesh metal metalwork milk mist moonlight moss mottling mozzarella mud mulch muscle music muslin mustard nectar
    neoprene netting nickel nylon oak oil padding paint panelling paper paprika parkland parmesan parsley pasta pasture pavement
    paving perspiration pesto pewter piping planking plankton plaster plastic plexiglass plumage plywood pollen polyester
    porcelain pork poultry pulp pumice quartz rain rattan rebar resin rice ricotta roofing roving rubber rubbish rubble salt sand
    sandstone sap satin sauce sawdust scaffolding scaling scenery scree scrollwork scrub seafood seating seaweed shading sheen
    sheeting shelving shine siding signage silk skin slate smoke snow soil soot spandex speckling spinach spotting steam steel
    steelwork stemware stitching stone stoneware stonework straw streaking striping stubble stucco stuffing styrofoam suede sugar
    sulfur sunlight surf sweat syrup tar tarmac tea terracotta text tilework tiling timber tinsel titanium topsoil tracery traffic
    trim tubing tulle turf tweed twine typography underfur undergrowth upholstery vapour varnish vegetation velcro velvet vinegar
    vinyl wallpaper water wax webbing wetland wicker wildlife wine wiring wood woodland wool writing yarn zinc
""".split()
)


def article(text: str) -> str:
    """`a` or `an`, by the sound of the first word; numbers and abbreviations go by how they are read aloud (an 8, an LED, a UV)."""
    first = next(iter(re.findall(r"[^\W_]+", text)), "")
    if digits := re.match(r"\d+", first):
        first = str(ENGINE.number_to_words(digits[0]))
    elif SPELLED_OUT.fullmatch(first):
        first = first[0]
    return ENGINE.a(first).split()[0] if first else "a"


@cache
def is_plural(noun: str) -> bool:
    """Whether the noun (of a compound with a hyphen, its last part) is a plural."""
    last = noun.lower().rsplit("-", 1)[-1]
    if last in PLURALS | PLURAL_IN_S:
        return True
    if last in SINGULARS or SINGULAR_ENDING.search(last):
        return False
    singular = ENGINE.singular_noun(last)
    return bool(singular) and (singular != last or last.endswith("s"))  # fish, aircraft: the word does not tell


def is_uncountable(noun: str) -> bool:
    """Whether the noun (of a compound with a hyphen, its last part) names a material or a mass, which takes no `a`."""
    return noun.lower().rsplit("-", 1)[-1] in UNCOUNTABLE
