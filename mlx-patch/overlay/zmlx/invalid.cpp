#include <sstream>
#include <stdexcept>

#include "mlx/utils.h"
#include "zmlx/invalid.h"

namespace zmlx {

std::ostream& operator<<(std::ostream& out, const Word& word) {
  switch (word.kind_) {
    case Word::Kind::Text:
      return out << word.text_;
    case Word::Kind::Integer:
      return out << word.integer_;
    case Word::Kind::Number:
      return out << word.number_;
    case Word::Kind::Shape:
      return out << *word.shape_;
    case Word::Kind::Dtype:
      return out << word.dtype_;
  }
  return out;
}

void throw_invalid(std::string_view op, std::initializer_list<Word> words) {
  std::ostringstream message;
  message << "[" << op << "] ";
  for (const Word& word : words) {
    message << word;
  }
  throw std::invalid_argument(message.str());
}

} // namespace zmlx
