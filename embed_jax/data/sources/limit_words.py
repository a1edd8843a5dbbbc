"""Words for things that people like, with which the texts of LIMIT are made: no two are alike."""

from __future__ import annotations

# By kind, for the reader only: the words of all kinds are shuffled.
LIKED_THINGS = """
aardvarks alligators alpacas anteaters antelopes apes armadillos baboons badgers bats bears
beavers bison bobcats buffaloes bulls camels caribou cats cattle chameleons cheetahs chimpanzees
chinchillas chipmunks cobras cougars coyotes crocodiles deer dingoes dogs donkeys dormice
elephants elk ermines ferrets foxes frogs gazelles geckos gerbils gibbons giraffes goats gophers
gorillas guanacos hamsters hares hedgehogs hippos horses hyenas ibexes iguanas impalas jackals
jaguars kangaroos koalas lambs lemmings lemurs leopards lions lizards llamas lynxes mammoths
marmots martens meerkats mice mink moles mongooses monkeys moose mules muskrats newts ocelots
okapis opossums orangutans otters oxen pandas pangolins panthers pigs platypuses polecats ponies
porcupines pumas pythons quokkas rabbits raccoons rats reindeer rhinos salamanders sheep shrews
skinks skunks sloths snakes squirrels stallions stoats tamarins tapirs terrapins tigers toads
tortoises turtles vipers voles wallabies walruses warthogs weasels wildebeest wolverines wolves
wombats yaks zebras

albatrosses bitterns blackbirds bluebirds budgerigars bustards buzzards canaries cassowaries
chickens cockatoos condors cormorants cranes crows cuckoos curlews doves ducks eagles egrets emus
falcons finches flamingos geese goldfinches grouse gulls hawks herons hornbills hummingbirds
ibises jackdaws jays kestrels kingfishers kites kiwis lapwings larks linnets loons macaws magpies
mallards mynahs nightingales nuthatches ospreys ostriches owls parakeets parrots partridges
peacocks pelicans penguins petrels pheasants pigeons pipits plovers puffins quails ravens robins
rooks sandpipers skylarks snipes sparrows starlings storks swallows swans swifts terns thrushes
toucans turkeys vultures wagtails warblers waxwings woodpeckers wrens

anchovies barracudas barnacles bass bream carp catfish clams cockles cod conches corals crabs
crayfish cuttlefish dolphins eels flounders guppies haddock halibut herring jellyfish krill
lampreys limpets lobsters mackerel manatees mussels narwhals octopuses orcas oysters perch pike
piranhas plankton porpoises prawns rays salmon sardines scallops seahorses seals sharks shrimp
sponges squid starfish stingrays sturgeon swordfish trout tuna urchins whales whelks

ants aphids bees beetles butterflies caterpillars centipedes cicadas crickets dragonflies
earthworms fireflies grasshoppers hornets ladybirds leeches locusts mantises mayflies midges
mosquitoes moths scorpions slugs snails spiders termites wasps weevils

acorns almonds apples apricots avocados bananas blackberries blueberries cashews cherries
chestnuts clementines coconuts cranberries currants damsons dates elderberries figs gooseberries
grapefruit grapes greengages guavas hazelnuts kumquats lemons limes lychees mandarins mangoes
mangosteens medlars melons mulberries nectarines olives oranges papayas peaches peanuts pears
pecans persimmons pineapples pistachios plums pomegranates prunes quinces raisins raspberries
rhubarb satsumas strawberries sultanas tamarinds tangerines walnuts watermelons

artichokes asparagus aubergines basil beetroot broccoli cabbages capers caraway cardamom carrots
cassava cauliflower celery chard chickpeas chicory chillies chives cinnamon cloves coriander
courgettes cress cucumbers cumin dill edamame endives fennel fenugreek garlic gherkins ginger
horseradish kale kohlrabi leeks lentils lettuce lovage marjoram mint mushrooms mustard nettles
nutmeg okra onions oregano paprika parsley parsnips peas pepper potatoes pumpkins radishes
rosemary saffron sage salsify samphire shallots sorrel spinach sprouts swedes sweetcorn tarragon
thyme tomatoes truffles turmeric turnips vanilla wasabi watercress yams

bacon bagels baguettes barley biryani bolognese borscht bread brioche broth burgers burritos
casseroles caviar cereal cheddar cheese chowder chutney couscous crackers crepes croquettes curry
custard dal dumplings eggs empanadas enchiladas falafel feta fondue frittatas gazpacho gnocchi
goulash gravy gumbo ham hummus jambalaya jelly kebabs kedgeree ketchup kimchi lasagne macaroni
marmalade mayonnaise meatballs moussaka mozzarella muesli noodles nougat oatmeal omelettes paella
pakoras pancakes parmesan pasta pastrami pesto pickles pies pizza polenta porridge pretzels
quiches quinoa ragout ramen ravioli rice ricotta risotto salads salami salsa samosas sandwiches
sausages schnitzel semolina soups spaghetti stews stroganoff sushi tacos tahini tapas tempura
toast tofu tortillas tzatziki vinegar waffles yoghurt

baklava biscuits blancmange brittle brownies butterscotch cakes candyfloss caramel cheesecake
chocolate churros cobblers compote cookies crumble cupcakes doughnuts eclairs flapjacks fudge
gelato gingerbread halva honey icing jam liquorice lollipops macaroons marshmallows marzipan
meringues molasses mousse muffins nectar parfait pastries pavlova praline profiteroles puddings
scones sherbet shortbread sorbet strudel sugar sundaes syrup tarts tiramisu toffee treacle trifle
turnovers

absinthe ale beer bourbon brandy buttermilk cider claret cocktails cocoa coffee cognac cordial
espresso gin grog juice kefir lager latte lemonade liqueur madeira mead milk milkshakes mojitos
punch rum sangria sherry smoothies stout tea tequila vermouth vodka water whisky wine

abseiling aerobics archery badminton ballooning baseball basketball bobsleigh bouldering bowling
boxing canoeing caving croquet curling cycling darts decathlons diving dressage fencing fishing
football gliding golf gymnastics handball hiking hockey hurdles jogging judo karate kayaking
kickboxing lacrosse luge marathons netball orienteering parkour pilates polo racquetball rafting
rowing rugby running sailing skateboarding skating skiing skydiving snooker snorkelling
snowboarding softball squash sumo surfing swimming tennis trampolining trekking triathlons
volleyball weightlifting windsurfing wrestling yoga

anagrams backgammon billiards bingo bridge canasta chess conkers cribbage crosswords dice dolls
dominoes draughts frisbees hangman hopscotch jigsaws juggling lotto mahjong marbles mazes patience
pinball poker puppets puzzles quizzes quoits raffles riddles rummy skittles solitaire sudoku tarot
tiddlywinks tombola whist yoyos

accordions arias bagpipes balalaikas ballads banjos bassoons bongos bugles carols castanets cellos
choirs clarinets concertos cymbals duets dulcimers fanfares flutes folk fugues gongs gospel
guitars harmonicas harps harpsichords hymns jazz kazoos lullabies lutes lyres madrigals mandolins
maracas marimbas minuets oboes ocarinas operas oratorios orchestras organs overtures pianos
piccolos polkas punk quartets recorders reggae requiems rhapsodies saxophones serenades shanties
sitars sonatas soul spinets swing symphonies tambourines timpani trombones trumpets tubas ukuleles
viols violas violins waltzes whistles xylophones zithers

acrobats autobiographies ballet biographies burlesque cabaret calypso cartoons circuses clowns
comedies comics conjuring diaries documentaries elegies epics essays fables fairytales farce
flamenco foxtrots haiku improvisation jesters legends limericks magicians melodramas memoirs mimes
monologues musicals myths novels odes pantomimes parades parodies plays poems proverbs quickstep
ragas rumba sagas salons samba satire sonnets tango thrillers tragedies ventriloquists westerns

astrology astronomy baking basketry batik beekeeping birdwatching blacksmithing bonsai bookbinding
brewing calligraphy camping carpentry carving ceramics cooking crochet decoupage distilling
drawing dressmaking embroidery engraving enamelling etching foraging gardening gilding
glassblowing hairdressing knitting lacemaking lithography macrame marquetry masonry mosaics
napping needlework origami painting papermaking patchwork philately photography picnics pottery
printmaking quilting reading sculpture sewing silversmithing singing sketching spinning stargazing
tailoring tapestry taxidermy topiary travelling upholstery weaving whittling woodwork

abacuses anvils axes balances barometers batteries bellows binoculars bolts brooms brushes bulbs
calculators calipers cameras candles chainsaws chisels clocks compasses computers corkscrews
crowbars drills easels envelopes erasers fans files flasks funnels gauges generators globes
hammers hinges hoes hourglasses kettles keyboards keys knives ladders ladles lamps lanterns lasers
lathes lenses levers lighters looms magnets mallets maps metronomes microphones microscopes
mirrors mops mortars nails nibs oscilloscopes padlocks pedometers pencils pendulums pens
periscopes pestles pickaxes pliers ploughs printers prisms projectors protractors pulleys radios
rakes ratchets razors robots rulers sandpaper saws scales scanners scissors screwdrivers scythes
sextants shovels sickles sieves spades spanners spectacles springs staplers stethoscopes
stopwatches sundials syringes tarpaulins telescopes televisions thermometers thermostats timers
tongs torches transistors trowels tweezers typewriters umbrellas vices wheelbarrows whisks winches
wrenches

aprons bangles belts berets blazers blouses bonnets boots bowties braces bracelets brooches
buckles buttons capes cardigans cloaks clogs coats collars corsets cravats crowns cuffs dresses
dungarees earrings galoshes gaiters garters gloves gowns handbags handkerchiefs hats helmets hoods
jackets jeans jerseys jodhpurs kaftans kilts kimonos lockets mittens moccasins necklaces overalls
overcoats pyjamas parkas pendants petticoats plimsolls pullovers purses raincoats ribbons rings
robes rucksacks sandals saris sarongs sashes scarves shawls shirts shoes shorts skirts slippers
socks sombreros stockings suits sunglasses sweaters tiaras ties tights togas trainers trousers
tunics turbans tuxedos uniforms veils vests waistcoats wallets wigs

alcoves armchairs baskets bathtubs beanbags beds benches blankets blinds bookcases bottles bowls
boxes buckets bunks cabinets carafes carpets cauldrons chandeliers chests cots couches cradles
crates crockery cupboards curtains cushions cutlery decanters desks doorbells doormats drawers
dressers duvets fireplaces footstools forks fridges goblets hammocks hampers hassocks heaters jugs
lampshades mattresses mugs napkins ottomans ovens pans parasols pillows plates platters pots
quilts radiators rugs saucepans saucers shelves sinks sofas spoons stools stoves tablecloths
tables tankards teapots thimbles towels trays trunks tureens urns vases wardrobes windows woks

acacias agaves alders aloes anemones ashes aspens asters azaleas bamboo baobabs begonias beeches
birches bluebells bougainvillea bracken brambles buttercups cacti camellias campanulas carnations
cedars chrysanthemums clover columbines cornflowers cowslips crocuses cyclamens cypresses
daffodils dahlias daisies dandelions delphiniums ebony edelweiss elms eucalyptus ferns forsythia
foxgloves freesias fuchsias gardenias gentians geraniums gladioli gorse hawthorn hazels heather
hemlock hibiscus holly hollyhocks honeysuckle hornbeams hostas hyacinths hydrangeas irises ivy
jacarandas jasmine junipers laburnum larches laurels lavender lichens lilacs lilies lobelias
lotuses lupins magnolias mahogany maples marigolds mimosas mistletoe moss myrtle narcissi
nasturtiums oaks oleanders orchids palms pansies peonies petunias phlox pines poplars poppies
primroses privet reeds rhododendrons roses rowans rushes sequoias snapdragons snowdrops spruces
sunflowers sycamores teak thistles tulips verbena violets willows wisteria yews yuccas zinnias

agates alabaster aluminium amber amethysts aquamarines asphalt basalt brass brick bronze calico
cashmere cement chalk chiffon chrome clay cobalt concrete copper corduroy cotton crystals denim
diamonds emeralds felt flannel flint fossils fur garnets gingham glass gold granite graphite
gravel hessian iron ivory jade jasper lace leather limestone linen lycra malachite marble mercury
mohair muslin nickel nylon obsidian onyx opals pearls peridots pewter platinum plywood porcelain
pumice quartz rubies sandstone sapphires satin silk silver slate steel suede taffeta tartan
terracotta tin titanium topaz tourmaline turquoise tweed velvet wool zinc

abbeys airports amphitheatres aquariums arcades arches atriums attics auditoriums bakeries
balconies barns basilicas bazaars boulevards breweries bungalows cafes campsites canals canyons
castles cathedrals caves cellars chalets chapels cinemas cloisters conservatories cottages
courtyards deserts distilleries docks domes dungeons embassies farms fjords forests fortresses
fountains galleries gardens gazebos glaciers greenhouses harbours hotels huts igloos inns islands
jungles labyrinths lagoons lakes libraries lighthouses lodges mansions markets marshes meadows
mills minarets monasteries moors mosques museums oases observatories orchards pagodas palaces
parks pavilions peninsulas piers planetariums plateaus prairies pubs pyramids ranches reefs rivers
ruins saunas savannas shrines skyscrapers spires squares stadiums stables suburbs swamps
synagogues taverns temples theatres towers tundra tunnels valleys verandas viaducts villages
vineyards volcanoes waterfalls watermills windmills zoos

aeroplanes airships ambulances barges bicycles boats bulldozers buses caravans carriages carts
catamarans chariots convertibles dinghies ferries frigates galleons gliders gondolas helicopters
hovercraft kayaks limousines locomotives lorries minibuses monorails mopeds motorcycles
narrowboats parachutes rickshaws rockets rollerblades rowboats satellites schooners scooters ships
sidecars skateboards sledges sleighs spaceships steamboats submarines taxis toboggans trams
tractors trains tricycles trolleys unicycles vans wagons yachts zeppelins

asteroids auroras avalanches blizzards breezes clouds comets constellations cyclones dawn dew
drizzle dusk dust earthquakes eclipses equinoxes fog frost galaxies geysers hail haze hurricanes
icebergs icicles lightning meteors mist monsoons moonlight nebulas planets puddles rain rainbows
sleet snow solstices stars storms sunrises sunsets sunshine thunder tides tornadoes twilight waves
whirlpools winds

accounting acoustics algebra alchemy anatomy anthropology archaeology architecture arithmetic
bacteriology biology botany calculus cartography chemistry chronology cosmology criminology
cryptography dentistry diplomacy ecology economics electronics engineering entomology ethics
etymology forestry genealogy genetics geography geology geometry grammar heraldry history
horticulture hydraulics journalism jurisprudence kinematics linguistics literature logic logistics
mathematics mechanics medicine metallurgy meteorology mineralogy mythology navigation neuroscience
optics ornithology orthography palaeontology pharmacology philosophy phonetics physics physiology
poetry politics probability psychology rhetoric robotics seismology semantics sociology statistics
theology thermodynamics topology toxicology trigonometry typography zoology

beige burgundy circles cones crimson cubes cylinders ellipses fractals helixes hexagons indigo
khaki lozenges magenta maroon mauve octagons ovals parabolas pentagons pink polygons purple
rectangles rhombuses scarlet spheres spirals trapeziums triangles vermilion zigzags

anniversaries auctions balloons banquets barbecues birthdays bonfires bouquets buffets bunting
carnivals christenings coronations fairs fasting festivals fireworks garlands gifts holidays
jubilees lotteries masquerades pageants pilgrimages processions receptions reunions rodeos
souvenirs vacations weddings
""".split()
