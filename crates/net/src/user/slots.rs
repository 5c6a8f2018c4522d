//! A table of at most so many things, each found by its place, and by a number that no later thing in the same place has.

/// The table.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u16, Option<T>)>,
    free: Vec<usize>,
    max: usize,
}

impl<T> Slots<T> {
    /// An empty one. More than 65,536 places cannot be told apart by number.
    pub(super) fn new(max: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), max: max.clamp(1, 1 << 16) }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.max
    }

    /// Places that were ever used.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Where it was put; `None` if the table is full.
    pub(super) fn insert(&mut self, value: T) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        let slot = self.slots.get_mut(index)?;
        slot.1 = Some(value);
        Some(index)
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.slots.get_mut(index)?.1.as_mut()
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let slot = self.slots.get_mut(index)?;
        let value = slot.1.take()?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    /// The number of what is in this place.
    pub(super) fn token(&self, index: usize) -> u32 {
        let generation = self.slots.get(index).map_or(0, |slot| slot.0);
        u32::from(generation) << 16 | index as u32 & 0xffff
    }

    /// The place of what has this number, if that is still there.
    pub(super) fn index_of(&self, token: u32) -> Option<usize> {
        let index = (token & 0xffff) as usize;
        let slot = self.slots.get(index)?;
        (slot.1.is_some() && u32::from(slot.0) == token >> 16).then_some(index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.1.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.1.as_mut())
    }
}
