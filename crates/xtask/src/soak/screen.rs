//! What a program has drawn that moves the cursor of a terminal: the characters, without their looks.
//!
//! Only what memtest86+ uses: cursor positions and clearing; all else changes nothing here. Authority: ECMA-48, sections 8.3.21 (CUP) and
//! 8.3.39 (ED).

/// Lines of the screen.
pub(crate) const LINES: usize = 25;
const COLUMNS: usize = 80;

/// A screen of 25 lines of 80 characters.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    cells: [[char; COLUMNS]; LINES],
    line: usize,
    column: usize,
}

impl Screen {
    /// An empty screen.
    pub(crate) fn new() -> Screen {
        Screen { cells: [[' '; COLUMNS]; LINES], line: 0, column: 0 }
    }

    /// Draws what followed an escape character: the rest of a control sequence, and text up to the next.
    pub(crate) fn draw(&mut self, piece: &str) {
        let Some(sequence) = piece.strip_prefix('[') else { return };
        let Some(end) = sequence.find(|c: char| ('@'..='~').contains(&c)) else { return };
        let (parameters, rest) = sequence.split_at(end);
        let mut rest = rest.chars();
        match rest.next() {
            Some('H') => {
                let mut numbers =
                    parameters.split(';').map(|word| word.parse::<usize>().unwrap_or(1).max(1) - 1);
                self.line = numbers.next().unwrap_or(0);
                self.column = numbers.next().unwrap_or(0);
            }
            Some('J') => *self = Screen::new(),
            _ => {}
        }
        for character in rest {
            let cell = self.cells.get_mut(self.line).and_then(|line| line.get_mut(self.column));
            if let Some(cell) = cell {
                *cell = character;
            }
            self.column = self.column.saturating_add(1);
        }
    }

    /// A line, counted from 0, without the blanks at its end.
    pub(crate) fn line(&self, number: usize) -> String {
        let cells = self.cells.get(number).map_or(&[][..], |line| &line[..]);
        cells.iter().collect::<String>().trim_end().to_owned()
    }

    /// All lines that are not empty, for a message.
    pub(crate) fn told(&self) -> String {
        (0..LINES).map(|number| self.line(number)).filter(|line| !line.is_empty()).fold(
            String::new(),
            |mut text, line| {
                text += "\n  ";
                text += &line;
                text
            },
        )
    }
}
