# ruff: noqa: E501 - a thing is a line
"""What customers look for, with what they mean: the graded queries of `search_relevance.py`.

Written before the search was tuned. Half of them, chosen by a hash of the text, was never looked at while tuning.
Each line of `_THINGS` is one thing a customer has: its key, title, category, memo, and queries for it by kind. A
query means the thing it stands with, and, at a lower grade, the things named after `~`. Queries that follow from the
data (prefixes, amounts, days) are graded by what they say literally, and so are the things that hold an exact or
contained query literally, beside the one that was meant.
"""

import re
from typing import NamedTuple


class Thing(NamedTuple):
    key: str
    title: str
    category: str
    memo: str


class Wish(NamedTuple):
    """A query with the things it means; without any, nothing may be found."""

    kind: str
    text: str
    grades: dict[str, int]


_THINGS = """
lakshmi | Lakshmi Stores | groceries | monthly ration | e:Lakshmi Stores t:Laksmi Stors,lakshmi stroes s:Laxmi Stores,laxmi,lakshmy stores ~lakshmi_hi
lakshmi_hi | लक्ष्मी स्टोर | groceries | किराना | e:लक्ष्मी स्टोर d:लक्ष्मी,लक्ष्मी स्टोर ~lakshmi
chaudhary | Chaudhary Medicals | medical | tablets | e:Chaudhary Medicals t:Chaudhary Medcials s:Choudhary Medicals,Chaudhari,Chowdhary medicals d:चौधरी
krishna | Sri Krishna Sweets | groceries | diwali gifts | e:Sri Krishna Sweets t:krishna swets,krihsna sweets s:Shri Krishna,Sree Krishna sweets,krisna d:कृष्ण
agarwal | Aggarwal Packers | other | house move | e:Aggarwal Packers t:aggarwal packrs s:Agarwal packers,Agrawal,agarwaal d:अग्रवाल
sharma | Sharma Electricals | shopping | ceiling fan | e:Sharma Electricals t:sharma electrcals,Shrama electricals s:Sarma,sharmaa electricals d:शर्मा
pooja | Pooja Boutique | shopping | saree | e:Pooja Boutique t:pooja botique s:Puja boutique,puja d:पूजा
deepak | Deepak Tutorials | other | maths fees | e:Deepak Tutorials t:deepak tutorails s:Dipak,dipak tutorials d:दीपक
geeta | Geeta Nair | rent | flat 4B | e:Geeta Nair t:geeta niar s:Gita Nair,geetha nair d:गीता
srinivas | Srinivas Rao | transfer | trip share | e:Srinivas Rao t:srinvas rao,srinivsa s:Shrinivas,Sreenivas rao d:श्रीनिवास
mohammed | Mohammed Rafi Tailors | shopping | suit stitching | e:Mohammed Rafi Tailors t:mohammed rafi tialors s:Mohammad rafi,Muhammad d:मोहम्मद
vijay | Vijay Sales | shopping | washing machine | e:Vijay Sales t:vijya sales s:Vijai sales,Wijay sales d:विजय सेल्स
saraswati | Saraswati Vidyalaya | other | school fees term 2 | e:Saraswati Vidyalaya t:sarasvati vidyalya s:Saraswathi,saraswati vidhyalaya d:सरस्वती
jyoti | Jyoti Printers | other | visiting cards | e:Jyoti Printers t:jyoti pritners s:Jyothi printers,jyoti d:ज्योति
ganesh | Ganesh Bhandar | groceries | pooja items | e:Ganesh Bhandar t:ganesh bhadnar s:Ganesh bandar,ganesha bhandar d:गणेश भंडार
reliance_fresh | Reliance Fresh | groceries | vegetables | e:Reliance Fresh t:relaince fresh,relianse fresh,reliance frsh s:relyance fresh d:रिलायंस
reliance_digital | Reliance Digital | shopping | headphones | e:Reliance Digital t:reliance digtal,relience digital s:reliyance digital d:रिलायंस
bigbasket | BigBasket | groceries | weekly order | e:BigBasket t:bigbaskt,bigbsaket s:bigbaskit c:basket
zomato | Zomato | food | dinner | e:Zomato t:zomatto,zoamto s:jomato d:ज़ोमैटो
swiggy | Swiggy | food | lunch | e:Swiggy t:swigy,swiggi s:swiggee d:स्विगी
irctc | IRCTC | travel | tatkal pune mumbai | e:IRCTC,irctc c:tatkal,pune mumbai t:
ola | Ola Cabs | travel | airport drop | e:Ola Cabs c:airport,airport drop t:airprot drop s:ola kabs
makemytrip | MakeMyTrip | travel | goa flights | e:MakeMyTrip t:makemytip,makemytirp c:goa,goa flights,mytrip
airtel | Airtel Broadband | utilities | fibre bill | e:Airtel Broadband t:airtel brodband,airtle s:eirtel d:एयरटेल c:fibre
jio | Jio Prepaid | utilities | recharge 239 | e:Jio Prepaid t:jio prepiad c:recharge d:जियो
tata_power | Tata Power | utilities | electricity bill | e:Tata Power t:tata pwoer,electricty bill c:electricity,electricity bill s:taata pawar d:टाटा पावर
mahavitaran | Mahavitaran MSEDCL | utilities | bijli bill | e:Mahavitaran MSEDCL t:mahavitran,mahavitarna c:bijli s:mahavitaran,mahaavitran d:महावितरण,बिजली
indane | Indane Gas | utilities | cylinder | e:Indane Gas t:indnae gas c:cylinder,gas s:indane gaas d:इंडेन गैस
society | Green Valley Society | rent | maintenance Q1 | e:Green Valley Society t:green vally society,maintainance c:maintenance,valley s:green velley
landlord | Ramesh Iyer | rent | rent for march | e:Ramesh Iyer t:ramesh iyre,ramehs iyer c:rent for march s:Ramesh Aiyar,rameshh d:रमेश
acme | Acme Technologies | salary | salary feb 2026 credit | e:Acme Technologies t:acme technolgies,acme tehcnologies c:technologies,salary credit s:akme technologies d:वेतन
bonus | Acme Technologies | salary | annual bonus | c:bonus,annual bonus t:anual bonus,bonsu s:bonas
interest | BFC Bank | interest | savings interest quarter | e:BFC Bank c:savings interest,quarter t:savings intrest,intrest quarter s:saavings intarest
emi | HDFC Home Loan | emi | home loan emi 14 of 240 | e:HDFC Home Loan t:hdfc home laon,hdfc hoem loan c:home loan,240 s:hdfc hom lon d:होम लोन
car | Axis Car Loan | emi | car loan emi | e:Axis Car Loan t:axsi car loan c:car loan s:aksis car d:एक्सिस
tax | Income Tax Department | tax | advance tax challan | e:Income Tax Department t:incoem tax,income tax departmnet c:challan,advance tax s:inkam tax d:इनकम टैक्स
gst | GST Network | tax | gstr3b | e:GST Network t:gst netwrok c:gstr3b s:gst network
lic | LIC Premium | investment | jeevan anand policy | e:LIC Premium t:lic premuim,jeevan annad c:jeevan,jeevan anand s:jivan anand,jeewan d:जीवन आनंद
sip | Parag Parikh Flexi Cap | investment | sip instalment | e:Parag Parikh Flexi Cap t:parag parkh,praag parikh c:flexi cap,sip s:paragh parekh,parag pareek
ppf | Public Provident Fund | investment | ppf yearly | e:Public Provident Fund t:public provdient fund c:provident,ppf s:pablik provident
amazon | Amazon Pay India | shopping | kindle | e:Amazon Pay India t:amazn pay,amaozn c:kindle,pay india s:amezon,amajon d:अमेज़न
flipkart | Flipkart Internet | shopping | mobile cover | e:Flipkart Internet t:flipkrat,flikpart c:mobile cover s:flipcart,phlipkart d:फ्लिपकार्ट
myntra | Myntra Designs | shopping | kurta | e:Myntra Designs t:mynrta,myntra desings c:kurta s:mintra d:मिंत्रा
dmart | Avenue Supermarts DMart | groceries | month end | e:Avenue Supermarts DMart t:avenue supermrats c:dmart,supermarts s:avenyu supermarts
starbucks | Tata Starbucks | food | coffee | e:Tata Starbucks t:starbuks,satrbucks c:starbucks,coffee s:starbaks d:स्टारबक्स
haldiram | Haldiram's Nagpur | food | namkeen | e:Haldiram's Nagpur t:haldirma,haldrams c:namkeen,nagpur s:haldiraam,namkin d:हल्दीराम,नागपुर
apollo | Apollo Pharmacy | medical | insulin | e:Apollo Pharmacy t:apolo pharmcy,apollo pharamcy c:insulin s:apolo farmacy,apollo farmasi d:अपोलो
fortis | Fortis Hospital | medical | knee mri | e:Fortis Hospital t:fotris hospital,fortis hosptial c:knee,mri s:phortis d:फोर्टिस
cult | Cult Fit | other | gym membership | e:Cult Fit t:membersihp,gym membreship c:gym,membership s:kult fit
netflix | Netflix | utilities | subscription | e:Netflix t:netflx,netfilx c:subscription s:netfliks d:नेटफ्लिक्स
spotify | Spotify | utilities | family plan | e:Spotify t:spotfy,sptoify c:family plan s:spotifi d:स्पॉटिफाई
petrol | Indian Oil Kothrud | travel | petrol | e:Indian Oil Kothrud t:indain oil,kothurd c:petrol,kothrud s:kotharud d:पेट्रोल
metro | Pune Metro Card | travel | metro top up | e:Pune Metro Card t:pune mtero c:metro,top up s:poona metro d:पुणे मेट्रो
nifty | NIFTY | position | | e:NIFTY,nifty t:nfity,niffty s:nifti d:निफ्टी ~nifty_call
nifty_call | NIFTY 22000 CALL | trade | | e:NIFTY 22000 CALL c:call,22000 call t:nifty 22000 clal s:nifti 22000 kall
banknifty | BANKNIFTY 48000 PUT | trade | | e:BANKNIFTY 48000 PUT c:48000 put t:bankniffty,banknfity s:baanknifty
infosys | INFOSYS | trade | | e:INFOSYS t:infsoys,infosis s:infosis d:इन्फोसिस
tcs | TATA CONSULTANCY | trade | | e:TATA CONSULTANCY t:tata conslutancy,consultnacy c:consultancy s:taata consaltancy
hdfcbank | HDFC BANK | position | | e:HDFC BANK t:hdfc bnak c:hdfc s:hdfc benk d:बैंक
rule_topup | Keep trading wallet ready | rule | when below 10000 | e:Keep trading wallet ready t:tradign wallet c:wallet ready s:treding wallet
rule_save | Save a fifth of my salary | rule | percent of each credit | e:Save a fifth of my salary t:fifht of salary c:fifth s:fipth of salary
"""

PREFIXES = [
    "lak",
    "laks",
    "rel",
    "relia",
    "reli",
    "big",
    "bigb",
    "zom",
    "zoma",
    "swi",
    "swig",
    "irc",
    "make",
    "makem",
    "air",
    "airt",
    "jio",
    "tata",
    "mah",
    "indi",
    "green",
    "ram",
    "acm",
    "hdf",
    "hdfc",
    "axi",
    "inc",
    "inco",
    "gst",
    "lic",
    "par",
    "para",
    "pub",
    "ama",
    "amaz",
    "fli",
    "flip",
    "myn",
    "aven",
    "star",
    "hal",
    "hald",
    "apo",
    "apol",
    "for",
    "fort",
    "net",
    "netf",
    "spo",
    "spot",
    "pun",
    "nif",
    "nift",
    "bank",
    "info",
    "tat",
    "keep",
    "save",
    "लक्ष",
]

AMOUNTS = {
    "rent_amount": ("25000", "25,000", "₹25,000", "₹25k", "25 thousand", "Rs. 25000.00"),
    "salary_amount": ("185000", "1,85,000", "1.85 lakh", "₹1.85 lakh", "185k"),
    "loan_amount": ("500000", "5 lakh", "5,00,000", "₹5L", "0.05 crore", "५ लाख"),
    "odd_amount": ("1234.50", "1,234.50", "₹1234.5"),
}
"""Queries that say the amount of one thing alone."""

DATES = (
    ("on:2026-02-14", "2026-02-14", "2026-02-14"),
    ("14 Feb 2026", "2026-02-14", "2026-02-14"),
    ("Feb 2026", "2026-02-01", "2026-02-28"),
    ("last month", "2026-02-01", "2026-02-28"),
    ("this month", "2026-03-01", "2026-03-31"),
    ("yesterday", "2026-03-14", "2026-03-14"),
    ("last 7 days", "2026-03-09", "2026-03-15"),
    ("before:2026-01-15", "2025-01-01", "2026-01-14"),
    ("FY 2024-25", "2024-04-01", "2025-03-31"),
    ("January 2026", "2026-01-01", "2026-01-31"),
)
"""As of 15 March 2026: the query and the days it means, both included."""

NONSENSE = [
    "qwxz",
    "zzzz",
    "xylophone",
    "brrrr",
    "99887766",
    "asdfgh",
    "lorem",
    "ipsum",
    "qqq",
    "wwwwww",
    "zxcvbnm",
    "pokemon",
    "volcano",
    "kangaroo",
    "7777777",
    "uuuu",
    "blorptang",
    "fnord",
    "yyy12",
    "खखखखख",
    "ठठठ",
    "mnbvcx",
    "25001",
    "hjkl77",
    "trombone",
    "glacier",
    "quasar",
    "wombat",
    "zebra",
    "platypus",
]

FOREIGN = [
    "Secret Hospital Trust",
    "Quixotic Ventures",
    "Bluebird Pharma",
    "Nakamura Imports",
    "Xanadu Resorts",
    "Vasundhara Jewels",
    "Omkareshwar Ashram",
    "Juniper Legal",
    "Zephyr Motors",
    "Wolfram Tuition",
]
"""Another customer's: in the same index, and nothing of them may be found."""


def things() -> list[Thing]:
    """Everything the customer has."""
    return [Thing(*(part.strip() for part in line.split("|")[:4])) for line in _THINGS.strip().splitlines()]


def wishes() -> list[Wish]:
    """The queries that stand with a thing; a text that stands with several means them all."""
    kinds = {"e": "exact", "c": "contains", "t": "typo", "s": "sound", "d": "devanagari"}
    every: dict[str, Wish] = {}
    for line in _THINGS.strip().splitlines():
        key, _, _, _, written = (part.strip() for part in line.split("|"))
        queries, _, also = written.partition("~")
        grades = {**dict.fromkeys(filter(None, also.strip().split(",")), 1), key: 3}
        for kind, texts in re.findall(r"(?:^|\s)([ectsd]):(.*?)(?=\s[ectsd]:|$)", queries):
            for text in filter(None, (text.strip() for text in texts.split(","))):
                known = every.get(text, Wish(kinds[kind], text, {}))
                every[text] = Wish(known.kind, text, {**known.grades, **grades})
    return list(every.values())
