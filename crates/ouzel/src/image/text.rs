//! Captions: a stroke font of our own, drawn smoothly at any size, so that pictures need no font file.

use ndarray::Array3;

/// How a line of text is drawn on an RGB picture `[h, w, 3]`.
///
/// The font has ASCII and `… · × ± ° – — − → ’ µ`; any other character is drawn as an empty box.
///
/// ```
/// use ouzel::image::Text;
/// let mut picture = ndarray::Array3::<u8>::from_elem((24, 80, 3), 255);
/// Text::new(14.0).draw(&mut picture, "ouzel", (4, 4));
/// assert!(picture.iter().any(|&value| value < 100));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Text {
    /// Height of capital letters in pixels, 1 to 1000; sharpest at multiples of 7.
    pub size: f32,
    /// Color of the strokes; default almost black.
    pub color: [u8; 3],
    /// Width of the strokes as a share of [`Self::size`]; default 0.135.
    pub weight: f32,
}

impl Text {
    /// Text whose capital letters are `size` pixels high.
    pub fn new(size: f32) -> Self {
        Self {
            size: if size.is_finite() { size.clamp(1.0, 1000.0) } else { 14.0 },
            color: [34, 36, 40],
            weight: 0.135,
        }
    }

    /// Sets [`Self::color`].
    pub fn color(self, color: [u8; 3]) -> Self {
        Self { color, ..self }
    }

    /// Thicker strokes, for headings.
    pub fn bold(self) -> Self {
        Self { weight: 0.18, ..self }
    }

    /// Width in pixels of a line of text.
    pub fn width(&self, line: &str) -> usize {
        line.chars().map(|letter| self.advance(glyph(letter))).sum::<f32>().ceil() as usize
    }

    /// Height in pixels from the top of the capitals to the bottom of the descenders.
    pub fn height(&self) -> usize {
        (self.size * 1.4).ceil() as usize
    }

    /// The line if it is no wider than `width` pixels, else its beginning and `…`.
    pub fn shortened(&self, line: &str, width: usize) -> String {
        if self.width(line) <= width {
            return line.to_owned();
        }
        let mut left = width.saturating_sub(self.width("…")) as f32;
        let fitting = line.chars().take_while(|&letter| {
            left -= self.advance(glyph(letter));
            left >= 0.0
        });
        format!("{}…", fitting.collect::<String>().trim_end())
    }

    /// Draws a line with its capitals' upper left corner at `(row, column)`; what lies outside is cut off.
    pub fn draw(&self, picture: &mut Array3<u8>, line: &str, (row, column): (i64, i64)) {
        let thickness = self.thickness();
        let unit = self.unit();
        let baseline = row as f32 + self.size - thickness / 2.0;
        let mut start = column as f32 + thickness / 2.0;
        for letter in line.chars() {
            let glyph = glyph(letter);
            if start > picture.dim().1 as f32 {
                return;
            }
            for stroke in glyph.strokes.split(';') {
                let points = outline(stroke);
                let placed: Vec<(f32, f32)> =
                    points.iter().map(|&(x, y)| (start + x * unit, baseline - y * unit)).collect();
                let radius =
                    if stroke.trim_start().starts_with('.') { thickness * 0.62 } else { thickness / 2.0 };
                self.ink(picture, &placed, radius);
            }
            start += self.advance(glyph);
        }
    }

    fn thickness(&self) -> f32 {
        (self.size * self.weight).max(0.9)
    }

    /// Pixels of a unit of the font, whose capitals are 7 high, measured between the middles of strokes.
    fn unit(&self) -> f32 {
        (self.size - self.thickness()).max(0.5) / 7.0
    }

    /// Whole pixels, so that equal letters look equal.
    fn advance(&self, glyph: Glyph) -> f32 {
        (glyph.width * self.unit() + self.size * 0.155 + self.thickness()).round()
    }

    /// Blends the color into all pixels near the line through `points`.
    fn ink(&self, picture: &mut Array3<u8>, points: &[(f32, f32)], radius: f32) {
        let (height, width, _) = picture.dim();
        let reach = radius + 1.0;
        let bounds = |values: &mut dyn Iterator<Item = f32>, side: usize| {
            let (low, high) = values.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
            let clip = |value: f32| value.clamp(0.0, side as f32) as usize;
            clip((low - reach).floor())..clip((high + reach).ceil())
        };
        let columns = bounds(&mut points.iter().map(|point| point.0), width);
        for row in bounds(&mut points.iter().map(|point| point.1), height) {
            for column in columns.clone() {
                let center = (column as f32 + 0.5, row as f32 + 0.5);
                let pairs = points.windows(2).map(|pair| distance(center, pair[0], pair[1]));
                let nearest = pairs.fold(f32::MAX, f32::min);
                let cover = (radius - nearest + 0.5).clamp(0.0, 1.0);
                if cover > 0.0 {
                    for (channel, &ink) in self.color.iter().enumerate() {
                        let old = f32::from(picture[[row, column, channel]]);
                        picture[[row, column, channel]] =
                            (old + cover * (f32::from(ink) - old)).round() as u8;
                    }
                }
            }
        }
    }
}

/// Distance of a point from the segment between two others.
fn distance((x, y): (f32, f32), (ax, ay): (f32, f32), (bx, by): (f32, f32)) -> f32 {
    let (dx, dy) = (bx - ax, by - ay);
    let squared = dx * dx + dy * dy;
    let share = if squared > 0.0 { (((x - ax) * dx + (y - ay) * dy) / squared).clamp(0.0, 1.0) } else { 0.0 };
    (x - ax - share * dx).hypot(y - ay - share * dy)
}

/// The points of a stroke: `-` a line through its points, `~` an open and `o` a closed curve, `.` a dot.
///
/// Curves are quadratic B-splines: they run towards their points and touch the middles between neighbors.
fn outline(stroke: &str) -> Vec<(f32, f32)> {
    let stroke = stroke.trim();
    let (kind, rest) = stroke.split_at(stroke.len().min(1));
    let mut points: Vec<(f32, f32)> = rest
        .split_whitespace()
        .filter_map(|point| {
            let (x, y) = point.split_once(',')?;
            Some((x.parse().ok()?, y.parse().ok()?))
        })
        .collect();
    let middle = |a: (f32, f32), b: (f32, f32)| ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
    match kind {
        "o" => {
            let start = middle(points[points.len() - 1], points[0]);
            points.insert(0, start);
            points.push(start);
        }
        "~" => {}
        "." => {
            points.push(points[0]);
            return points;
        }
        _ => return points,
    }
    let last = points.len() - 1;
    let mut curve = vec![points[0]];
    for index in 1..last {
        let from = *curve.last().expect("invariant: the curve has a start");
        let control = points[index];
        let to = if index + 1 == last { points[last] } else { middle(control, points[index + 1]) };
        curve.extend((1..=6).map(|step| {
            let t = step as f32 / 6.0;
            let at = |from: f32, control: f32, to: f32| {
                (1.0 - t) * (1.0 - t) * from + 2.0 * t * (1.0 - t) * control + t * t * to
            };
            (at(from.0, control.0, to.0), at(from.1, control.1, to.1))
        }));
    }
    curve
}

#[derive(Clone, Copy)]
struct Glyph {
    letter: char,
    /// From the middle of the leftmost to that of the rightmost stroke.
    width: f32,
    strokes: &'static str,
}

const fn g(letter: char, width: f32, strokes: &'static str) -> Glyph {
    Glyph { letter, width, strokes }
}

fn glyph(letter: char) -> Glyph {
    const UNKNOWN: Glyph = g('\0', 3.6, "- 0,0 0,7 3.6,7 3.6,0 0,0");
    GLYPHS.iter().find(|glyph| glyph.letter == letter).copied().unwrap_or(UNKNOWN)
}

/// Strokes on a grid whose baseline is 0; small letters are 5 high, capitals and digits 7, descenders reach -2.
#[rustfmt::skip]
const GLYPHS: &[Glyph] = &[
    g(' ', 0.7, ""),
    g('a', 3.8, "~ 0.3,4 0.6,5 2,5 3.8,5 3.8,3.2 3.8,0; ~ 3.8,2.9 1.8,2.9 0,2.9 0,1.4 0,0 1.6,0 3.4,0 3.8,2"),
    g('b', 4.0, "- 0,0 0,7; o 0,0 4,0 4,5 0,5"),
    g('c', 3.8, "~ 3.8,3.9 3.4,5 2.1,5 0,5 0,2.5 0,0 2.1,0 3.4,0 3.8,1.1"),
    g('d', 4.0, "- 4,0 4,7; o 0,0 4,0 4,5 0,5"),
    g('e', 4.0, "- 0,2.6 4,2.6; ~ 4,2.6 4,5 0,5 0,2.5 0,0 2.2,0 3.5,0 3.8,1"),
    g('f', 2.6, "~ 2.8,7 1.1,7 1.1,5.4 1.1,0; - 0,5 2.5,5"),
    g('g', 4.0, "o 0,0 4,0 4,5 0,5; ~ 4,5 4,0.5 4,-2 2,-2 0.8,-2 0.3,-1.3"),
    g('h', 3.8, "- 0,0 0,7; ~ 0,2.6 0,5 3.8,5 3.8,3 3.8,0"),
    g('i', 0.0, "- 0,0 0,5; . 0,7"),
    g('j', 1.0, "~ 1,5 1,-0.5 1,-2 -0.5,-2; . 1,7"),
    g('k', 3.6, "- 0,0 0,7; - 3.4,5 0,1.7; - 1.4,3 3.6,0"),
    g('l', 1.0, "~ 0,7 0,1.2 0,0 1.1,0"),
    g('m', 6.4, "- 0,0 0,5; ~ 0,2.8 0,5 3.2,5 3.2,3.2 3.2,0; ~ 3.2,2.8 3.2,5 6.4,5 6.4,3.2 6.4,0"),
    g('n', 3.8, "- 0,0 0,5; ~ 0,2.6 0,5 3.8,5 3.8,3 3.8,0"),
    g('o', 4.2, "o 0,0 4.2,0 4.2,5 0,5"),
    g('p', 4.0, "- 0,-2 0,5; o 0,0 4,0 4,5 0,5"),
    g('q', 4.0, "- 4,-2 4,5; o 0,0 4,0 4,5 0,5"),
    g('r', 2.2, "- 0,0 0,5; ~ 0,2.6 0,5 1.6,5 2.4,4.9"),
    g('s', 3.4, "~ 3.3,4.1 3,5 1.7,5 0,5 0,3.7 0,2.8 1.7,2.5 3.5,2.2 3.5,1.3 3.5,0 1.7,0 0.3,0 0,1"),
    g('t', 2.7, "~ 1.1,6.6 1.1,1.6 1.1,0 2.7,0.1; - 0,5 2.6,5"),
    g('u', 3.8, "~ 0,5 0,2 0,0 3.8,0 3.8,2.4; - 3.8,5 3.8,0"),
    g('v', 4.0, "- 0,5 2,0 4,5"),
    g('w', 5.8, "- 0,5 1.45,0 2.9,5 4.35,0 5.8,5"),
    g('x', 3.8, "- 0,5 3.8,0; - 0,0 3.8,5"),
    g('y', 4.0, "- 0,5 2.05,0; ~ 4,5 1.6,-1 1.2,-2 0.1,-2"),
    g('z', 3.6, "- 0.1,5 3.5,5 0,0 3.7,0"),
    g('A', 5.0, "- 0,0 2.5,7 5,0; - 0.85,2.3 4.15,2.3"),
    g('B', 4.3, "- 0,0 0,7; ~ 0,7 2.2,7 4,7 4,3.7 2.2,3.7 0,3.7; ~ 0,3.7 2.4,3.7 4.4,3.7 4.4,0 2.4,0 0,0"),
    g('C', 4.8, "~ 4.8,5.4 4.3,7 2.6,7 0,7 0,3.5 0,0 2.6,0 4.3,0 4.8,1.6"),
    g('D', 4.8, "- 0,0 0,7; ~ 0,7 1.8,7 4.8,7 4.8,3.5 4.8,0 1.8,0 0,0"),
    g('E', 3.9, "- 3.9,7 0,7 0,0 3.9,0; - 0,3.7 3.4,3.7"),
    g('F', 3.7, "- 3.8,7 0,7 0,0; - 0,3.6 3.3,3.6"),
    g('G', 5.0, "~ 4.8,5.4 4.3,7 2.6,7 0,7 0,3.5 0,0 2.7,0 5,0 5,2.2 5,3.2; - 5,3.2 2.9,3.2"),
    g('H', 4.7, "- 0,0 0,7; - 4.7,0 4.7,7; - 0,3.7 4.7,3.7"),
    g('I', 0.0, "- 0,0 0,7"),
    g('J', 3.2, "~ 3.2,7 3.2,2 3.2,0 1.5,0 0.2,0 0,1.4"),
    g('K', 4.5, "- 0,0 0,7; - 4.3,7 0,2.6; - 1.6,4.2 4.5,0"),
    g('L', 3.6, "- 0,7 0,0 3.7,0"),
    g('M', 5.8, "- 0,0 0,7 2.9,2 5.8,7 5.8,0"),
    g('N', 4.8, "- 0,0 0,7 4.8,0 4.8,7"),
    g('O', 5.4, "o 0,0 5.4,0 5.4,7 0,7"),
    g('P', 4.2, "- 0,0 0,7; ~ 0,7 2.3,7 4.3,7 4.3,3.1 2.3,3.1 0,3.1"),
    g('Q', 5.4, "o 0,0 5.4,0 5.4,7 0,7; - 3.3,1.7 5.3,-0.5"),
    g('R', 4.4, "- 0,0 0,7; ~ 0,7 2.3,7 4.3,7 4.3,3.2 2.3,3.2 0,3.2; - 2.3,3.2 4.5,0"),
    g('S', 4.3, "~ 4.2,5.6 3.8,7 2.2,7 0,7 0,5.3 0,4 2.2,3.6 4.4,3.2 4.4,1.8 4.4,0 2.2,0 0.4,0 0,1.5"),
    g('T', 4.6, "- 0,7 4.6,7; - 2.3,7 2.3,0"),
    g('U', 4.7, "~ 0,7 0,2.4 0,0 2.35,0 4.7,0 4.7,2.4 4.7,7"),
    g('V', 4.9, "- 0,7 2.45,0 4.9,7"),
    g('W', 7.0, "- 0,7 1.75,0 3.5,7 5.25,0 7,7"),
    g('X', 4.6, "- 0,7 4.6,0; - 0,0 4.6,7"),
    g('Y', 4.6, "- 0,7 2.3,3.3 4.6,7; - 2.3,3.3 2.3,0"),
    g('Z', 4.4, "- 0.1,7 4.3,7 0,0 4.5,0"),
    g('0', 4.0, "o 0,0 4,0 4,3.5 4,7 0,7 0,3.5"),
    g('1', 3.2, "- 0.5,5.6 2.2,7 2.2,0"),
    g('2', 4.0, "~ 0.1,5.3 0.3,7 2,7 4,7 4,5.2 4,4 2.6,2.6 0,0; - 0,0 4,0"),
    g('3', 4.0, "~ 0.2,5.6 0.5,7 2,7 3.8,7 3.8,5.3 3.8,3.8 2,3.8 1.5,3.8; ~ 1.5,3.8 2,3.8 4,3.8 4,1.9 4,0 2,0 0.3,0 0,1.5"),
    g('4', 4.2, "- 3.2,0 3.2,7 0,2 4.3,2"),
    g('5', 4.0, "- 3.6,7 0.6,7 0.3,3.7; ~ 0.3,3.7 1,4.5 2,4.5 4,4.5 4,2.2 4,0 2,0 0.4,0 0,1.3"),
    g('6', 4.0, "~ 3.6,6 3.2,7 2.2,7 0,7 0,3.5 0,2.1; o 0,0 4,0 4,4.4 0,4.4"),
    g('7', 3.8, "- 0,7 3.9,7 1.3,0"),
    g('8', 4.0, "o 0.3,3.8 3.7,3.8 3.7,7 0.3,7; o 0,0 4,0 4,3.8 0,3.8"),
    g('9', 4.0, "o 0,2.6 4,2.6 4,7 0,7; ~ 4,4.9 4,3.5 4,0 1.8,0 0.8,0 0.4,1"),
    g('!', 0.0, "- 0,7 0,2.2; . 0,0.1"),
    g('"', 1.6, "- 0,7 0,5.2; - 1.6,7 1.6,5.2"),
    g('#', 4.6, "- 1.2,0.6 1.9,6.4; - 3,0.6 3.7,6.4; - 0.2,4.5 4.6,4.5; - 0,2.5 4.4,2.5"),
    g('$', 4.0, "~ 3.8,5.1 3.5,6.2 2,6.2 0,6.2 0,4.8 0,3.8 2,3.5 4,3.2 4,2 4,0.7 2,0.7 0.4,0.7 0,1.9; - 2,7.4 2,-0.4"),
    g('%', 6.2, "o 0,3.8 2.5,3.8 2.5,7 0,7; o 3.7,0 6.2,0 6.2,3.2 3.7,3.2; - 5,7 1.2,0"),
    g('&', 5.0, "~ 5,0 1.4,4.2 0.4,5.4 0.6,7 2.1,7 3.6,7 3.6,5.6 3.6,4.5 2,3.8 0,2.9 0,1.8 0,0 2,0 4.2,0 4.8,3"),
    g('\'', 0.0, "- 0,7 0,5.2"),
    g('(', 1.5, "~ 1.6,7.8 0,5.6 0,3 0,0.4 1.6,-1.8"),
    g(')', 1.5, "~ 0,7.8 1.6,5.6 1.6,3 1.6,0.4 0,-1.8"),
    g('*', 3.0, "- 1.5,7 1.5,4; - 0.2,6.2 2.8,4.8; - 0.2,4.8 2.8,6.2"),
    g('+', 4.0, "- 0,3 4,3; - 2,1 2,5"),
    g(',', 0.4, "- 0.4,0.3 -0.2,-1.4"),
    g('-', 2.4, "- 0,2.8 2.4,2.8"),
    g('.', 0.0, ". 0,0.1"),
    g('/', 3.0, "- 0,-1 3,7.6"),
    g(':', 0.0, ". 0,0.5; . 0,4.3"),
    g(';', 0.4, "- 0.4,0.3 -0.2,-1.4; . 0.3,4.3"),
    g('<', 3.6, "- 3.6,5 0,3 3.6,1"),
    g('=', 4.0, "- 0,4 4,4; - 0,2 4,2"),
    g('>', 3.6, "- 0,5 3.6,3 0,1"),
    g('?', 3.4, "~ 0,5.6 0.2,7 1.7,7 3.4,7 3.4,5.3 3.4,4.3 1.7,3.6 1.7,2.2; . 1.7,0.1"),
    g('@', 6.4, "o 2,1.4 4.4,1.4 4.4,4.6 2,4.6; ~ 4.4,4.6 4.4,2.4 4.4,1.2 5.4,1.2 6.4,1.2 6.4,3.2 6.4,6.4 3.2,6.4 0,6.4 0,2.6 0,-1.2 3.2,-1.2 4.6,-1.2 5.4,-0.6"),
    g('[', 1.5, "- 1.5,7.6 0,7.6 0,-1.6 1.5,-1.6"),
    g('\\', 3.0, "- 0,7.6 3,-1"),
    g(']', 1.5, "- 0,7.6 1.5,7.6 1.5,-1.6 0,-1.6"),
    g('^', 3.2, "- 0,4.6 1.6,7 3.2,4.6"),
    g('_', 3.6, "- 0,-1 3.6,-1"),
    g('`', 1.0, "- 0,7.2 1,6"),
    g('{', 2.0, "~ 2,7.6 1,7.6 1,6 1,3.4 0.4,3 0,3; ~ 0,3 0.4,3 1,2.6 1,0 1,-1.6 2,-1.6"),
    g('|', 0.0, "- 0,7.6 0,-1.6"),
    g('}', 2.0, "~ 0,7.6 1,7.6 1,6 1,3.4 1.6,3 2,3; ~ 2,3 1.6,3 1,2.6 1,0 1,-1.6 0,-1.6"),
    g('~', 4.0, "~ 0,2.4 0.4,3.8 1.6,3.6 2.4,2.6 3.6,2.2 4,3.6"),
    g('…', 4.4, ". 0,0.1; . 2.2,0.1; . 4.4,0.1"),
    g('·', 0.0, ". 0,3"),
    g('×', 3.4, "- 0.1,1.4 3.3,4.6; - 0.1,4.6 3.3,1.4"),
    g('±', 4.0, "- 0,3.6 4,3.6; - 2,1.8 2,5.4; - 0,0.2 4,0.2"),
    g('°', 2.2, "o 0,4.8 2.2,4.8 2.2,7 0,7"),
    g('–', 4.0, "- 0,2.8 4,2.8"),
    g('—', 6.0, "- 0,2.8 6,2.8"),
    g('−', 4.0, "- 0,3 4,3"),
    g('→', 5.0, "- 0,3 5,3; - 3.2,4.8 5,3 3.2,1.2"),
    g('’', 0.4, "- 0.4,7 0,5.2"),
    g('µ', 3.8, "~ 0,5 0,2 0,0 3.8,0 3.8,2.4; - 3.8,5 3.8,0; - 0,5 0,-2"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_ascii_character_has_strokes_within_its_box() {
        for letter in ' '..='~' {
            let glyph = glyph(letter);
            assert_eq!(glyph.letter, letter);
            for stroke in glyph.strokes.split(';').filter(|stroke| !stroke.is_empty()) {
                let texts = stroke.split_whitespace().count();
                let points = outline(stroke);
                assert!(texts >= 2 && points.len() >= 2, "{letter}: {stroke}");
                for (x, y) in points {
                    assert!(
                        (-0.6..=glyph.width + 0.3).contains(&x) && (-2.0..=7.8).contains(&y),
                        "{letter}: {x},{y}"
                    );
                }
            }
        }
    }

    #[test]
    fn text_stays_in_its_box_and_is_cut_at_the_edge() {
        let text = Text::new(14.0);
        let line = "Water ouzel, gqjpy 91.4%";
        let (height, width) = (text.height(), text.width(line));
        let mut picture = Array3::<u8>::from_elem((height + 20, width + 20, 3), 255);
        text.draw(&mut picture, line, (10, 10));
        for ((row, column, _), &value) in picture.indexed_iter() {
            let inside = (8..height + 12).contains(&row) && (8..width + 12).contains(&column);
            assert!(inside || value == 255, "ink at {row}, {column}");
        }
        let mut small = Array3::<u8>::from_elem((5, 5, 3), 255);
        for corner in [(-3, -8), (2, 2), (1000, 1000), (i64::MIN, i64::MAX)] {
            text.draw(&mut small, line, corner);
        }
        Text::new(f32::NAN).draw(&mut Array3::zeros((0, 0, 3)), "☃ snow", (0, 0));
    }

    #[test]
    fn long_lines_are_shortened() {
        let text = Text::new(14.0);
        assert_eq!(text.shortened("ouzel", 500), "ouzel");
        let short = text.shortened("a very long caption indeed", 120);
        assert!(short.ends_with('…') && text.width(&short) <= 120 && short.len() > 8, "{short}");
    }
}
