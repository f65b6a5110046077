"""Words that look like a person's name in a dealership's text and mostly are none.

`ORDINARY` was made by intersecting the commoner names of the 1990 US census with a dictionary's lower-case words, less
those that are hardly ever written in lower case for anything but the name (john, smith), plus the commonest function
words. `CARS` holds makes and models that could be read as names, `TRADE` what a name field holds in place of a name.
"""

from __future__ import annotations


def word_set(words: str) -> frozenset[str]:
    """The words of a text, for lists that read better as one."""
    return frozenset(words.split())


ORDINARY = word_set(
    """
a about after again all alley almond alpha also amber an and angle any apple april archer are art as asap ash at
august aura aurora autumn bach back bacon baker ball banner barber barker baron bass battle bay be beach beam
bean bear beard beau beaver been beer bell belle belt ben berry best bias bill birch bird bishop black blake
bland blank blessing bliss block blood bloom blow blue blunt bolt bond bone book booker booth born boss boston
bounds brace brain brake branch brand brandy bravo brazil brewer bridge bright brink broadway brock brook brown
brush buck bud buddy bull bunch bunker burden bush but butcher butler button by cable cage cain call camp can
canada candy cannon card carpenter carrier case cash castle cave chamberlain champagne champion chance
chancellor charity chase cherry chew child chin church clay click cliff close cloud coffee coffin colon come
cone cook cope coral cotton couch could council covert coward cox craft crane creed crisp cross crow crystal
curry daily daisy darling dawn day deal dean december del delta dent derby destiny dew dial diamond did do doe
does dollar don dove dover dow down drain drake drew driver duck duke dusty duty dye eagle earl early earnest
east easter elder else era fair faith falcon farmer february fee ferry field finch fine fish fisher fix flick
flint flood folk for foreman forest fort fortune foster fountain fox frame frank free freed friday fried friend
from frost gamble gee german get gill ginger give glass glory go gold golden good gore grace grant gray green
grey grim groom gross grove guess guest guy had hair hall hammer han hand handy hank harden harder hardy hare
harmony harness hart has hatch have haven hawk hay hazel he head heath heck hello her herb herd here hi high
hill him his holden holder holiday holly holt hood hook hoover hope horn house how howe hull humble hung hunt
hurt i if in is it its ivory ivy jack jade january jasper jewel jolly joy judge july june junior just justice
keen key king kitchen kite kitty knight know lake lamb lane large law lay leak lemon light like lily ling link
little lively loan lock long look looking lord love lovely loving low luck madden main major majors make man
manning manual many marble march marina mark marker marry marsh martin marvel mason mast maxwell may maze me
merchant mercy merry mesa messenger meta min miner minor miracle mix mock monday money monk moon more morgan
morse moss mount much my nail napoleon nation need needs ness new nick nickel no noble north not nova november
now null october of off old olive on one only or our out outlaw over pace pack page painter palm palmer parent
parish patience peace peak pearl peek peel penny pepper person petty pierce pike piper pitcher place plant
pleasant please pointer pond pool pope porter post potter power precious price pride priest prince princess
prior queen quick race ransom rash raven read reel register rice rich rider ring rob rock rocky rod roller root
rose royal ruby rue rule rush rushing rust rusty said salmon sample sandy sang saturday savage sawyer say scales
seal see self sell september sessions settle shade sharp she shell shepherd shin shine shook shore short shorter
sides silver singer sink skipper slack small smart snow so sol some son song sonny soon south southern sparks
spear speed spring springer stack star stark steel sterling stern still stock stocks stone storm story straight
strain strait strand strange street strong sue summer sun sunday sung sunny sunshine swan sweat sweet swift take
tang tanner temple than thanks that the their them then there they this thursday time to today tomorrow tower
treat trinity trout troy true tuck tuesday turner two up urban us use used valentine van velvet very vest villa
vineyard violet walker wall want wants ward warden ware warner was way we weaver weber wednesday weed weir well
were west what wheat wheeler when where which white who wild will willy windy wing winner winter wisdom wise
with wolf wood wooden woodward woody word worth worthy would yen yes you young younger your
"""
)

CARS = word_set(
    """
acadia accord acura allroad altima armada aston astro atlas audi austin avalon avenger avenue aviator beetle
bentley benz blazer bmw bronco buick cadillac camaro camry canyon caravan carnival carrera cavalier cayenne
cayman century challenger charger cherokee chevrolet chevy chrysler civic colorado commander compass concorde
cooper corolla corsair corvette cougar crosstrek cruze dakar dakota dart datsun denali dodge durango eclipse
edge elantra enclave encore envision envista envoy equinox escalade escape escort expedition explorer express
ferrari fiat fiesta fit flex focus ford forester forte freestyle frontier fusion galaxy genesis giulia gladiator
gmc golf grand hemi highlander honda hummer hyundai impala impreza infiniti insight isuzu jaguar jeep jetta
jimmy journey juke kia kicks kona lamborghini land landcruiser laramie leaf legacy lexus liberty limited lincoln
lotus lucerne lucid macan malibu mariner marquis maserati maverick maxima mazda mercedes mercury mini mitsubishi
montana monte murano mustang nautilus navigator nissan odyssey oldsmobile optima outback outlander pacifica
palisade panamera park passat passport pathfinder patriot phantom pilot platinum plymouth polestar pontiac
porsche prelude premier prius promaster quest ram range ranger regal renegade ridgeline rio rivian rogue rolls
rover royce saab sable safari santa saturn savana sebring sentra sequoia seville sienna sierra silverado solara
sonata sonic sorento soul spark sport sportage sprinter spyder stelvio stinger subaru suburban suzuki tacoma
tahoe taurus telluride terrain tesla tiguan titan touareg touring town toyota tracker transit traverse trax
tribeca tucson tundra vanagon vantage venture venza verano versa vibe viper volkswagen volt volvo voyager
wagoneer wildcat windstar wrangler yaris yukon
"""
)

TRADE = word_set(
    """
ac airbag appointment appt auto automotive battery body brake brakes broker center certified change check
cleaner client code company complaint concern contact corp credit cust customer dealer dealership declined
department dept detail diesel door drive driver electric engine estimate finance fleet garage general group
guest hail inc internet invoice job lead lights llc ltd maintenance manager mech mileage motor motors n/a name
needs noise none null oil office owner parts payment phone plate prefers prospect purchase quote recall
repair reports requests rotate sale sales seat service shop states stereo tech technician test tire tires
towing trade transmission truck unknown used vehicle vin waiter walk-in wants warranty wholesale withheld
"""
)
