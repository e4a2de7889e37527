!> What the tests' programs in Fortran do with the code of a call: they say what failed and end.
module checking
  use headrace
  implicit none
contains

  subroutine check(study, code)
    type(headrace_study), intent(in) :: study
    integer, intent(in) :: code
    if (code < 0) then
      write (*, "(a)") headrace_last_error(study)
      error stop 1
    end if
  end subroutine check

end module checking
